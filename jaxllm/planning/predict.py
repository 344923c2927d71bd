"""How long a step will take: a range from the compiled program's work and the public figures of the chip.

    fast   everything overlaps: the longest of products, main memory and each network
    slow   nothing overlaps: what the chip does by itself, then the networks

What the chip does by itself is on TPU the compiler's own estimate, in cycles, where that is longer than the roofline.
Neither knows of stragglers, the input, copies between device and host, or waiting between hosts.
"""

from typing import NamedTuple

from jaxllm.common.corrupted import row_lengths
from jaxllm.config import RunConfig
from jaxllm.models.summary import flops_per_token, run_flops
from jaxllm.planning.program import Collective
from jaxllm.planning.topology import Target
from jaxllm.planning.work import Work

BUSY = 0.8
"""Share of that roofline which whole training steps reach at least, at large sizes. MaxText's 16B on 256 v5e chips has
61.1 % of the peak in model FLOPs, which is 80 % in executed ones (full rematerialisation), where one large product has
88 %: 0.9 of it. Their 70B on v5p has about 0.85."""


class Range(NamedTuple):
    """Between what a prediction thinks best and worst."""

    low: float
    high: float


class Prediction(NamedTuple):
    """Of one optimizer step."""

    seconds: Range
    tokens_per_second_chip: Range
    mfu: Range
    """Model FLOPs (attention counted causally) over the bfloat16 peak."""
    bound: str
    """What takes longest when all overlaps: `compute`, `memory`, or the name of a network."""
    parts: dict[str, float]
    """Seconds of each part by itself, at the chip's figures; `compiler` is its own estimate, without kernels."""


def model_flops(config: RunConfig) -> int:
    """Of one optimizer step, all devices together, without recomputation."""
    return config.train.batch_size * config.data.sequence_length * run_flops(config).total


def visible_share(config: RunConfig) -> float:
    """Of all pairs of a query and a key in a row, those that attention sees: about half, or fewer in a window."""
    model, (length, written) = config.model, row_lengths(config)
    pairs = model.layers * length * length
    if model.architecture == "encoder_decoder":
        pairs = (model.encoder_layers or model.layers) * length * length + model.layers * written * (written + length)
    return flops_per_token(model, length, written).attention * length / (12 * model.heads * model.head_dim * pairs)


def predict(config: RunConfig, asked: Target, work: Work, collectives: list[Collective]) -> Prediction | None:
    """The range of a step's time; none for a chip without public figures (CPU)."""
    chip = asked.chip
    if not chip.peak_flops:
        return None
    peak = chip.peak_flops / chip.devices * chip.product_share
    parts = {
        "compute": work.flops / peak,
        "memory": work.memory_bytes / (chip.memory_bandwidth / chip.devices),
        chip.fast: sum(c.fast_traffic / _bandwidth(c, asked) for c in collectives),
        chip.slow: sum(c.slow_traffic for c in collectives) / (chip.slow_bandwidth / chip.devices),
    }
    networks = parts[chip.fast] + parts[chip.slow]
    alone = max(parts["compute"], parts["memory"]) / BUSY
    bound = max(parts, key=lambda name: parts[name])
    fast = parts[bound]
    if chip.clock and work.cycles:
        parts["compiler"] = work.cycles / chip.clock
        alone = max(alone, parts["compiler"] + work.kernel_flops / peak / BUSY)
    return _prediction(config, asked, Range(fast, alone + networks), bound, parts)


def _bandwidth(collective: Collective, asked: Target) -> float:
    """Bytes a second that a device sends to others of its slice or host; on a chip without links it sends nothing."""
    links = collective.links
    return (asked.link_bandwidth if links is None else asked.bandwidth(links)) or float("inf")


def _prediction(config: RunConfig, asked: Target, seconds: Range, bound: str, parts: dict[str, float]) -> Prediction:
    tokens = config.train.batch_size * config.data.sequence_length / asked.chips
    used = model_flops(config) / asked.chips / asked.chip.peak_flops
    return Prediction(
        seconds=seconds,
        tokens_per_second_chip=Range(tokens / seconds.high, tokens / seconds.low),
        mfu=Range(used / seconds.high, used / seconds.low),
        bound=bound,
        parts=parts,
    )
