"""A closed-form guess at memory and time of a step, good enough to order candidates before any is compiled."""

import math
from typing import NamedTuple

from jaxllm.config import GATED, RunConfig, TransformerConfig
from jaxllm.models.summary import run_flops
from jaxllm.models.table import parameter_table
from jaxllm.planning.topology import Target
from jaxllm.sharding.preflight import CUT_FROM, state_on_devices

WIDE, NARROW = 4, 2
"""Bytes of a number of the state, and of one that is computed with on an accelerator."""

RECOMPUTED = {"none": 0.0, "dots": 0.05, "offload": 0.05, "attention": 0.15, "full": 0.33, "offload_inputs": 0.33}
"""Share of the model's FLOPs done again, by remat policy."""

MOVED = 3 * NARROW + 2 * WIDE
"""Bytes through the main memory for each parameter and microbatch: it is read three times, its gradient is added up."""

SLACK = 1.3
"""A candidate is given up without compiling where the guess is over the memory by more than this."""


class Guess(NamedTuple):
    """Of one device."""

    bytes: float
    seconds: float


def guess(config: RunConfig, asked: Target) -> Guess:
    """Memory and time of a step of `config`, whose mesh has no -1 left."""
    return Guess(_bytes(config, asked.chip.platform), _seconds(config, asked))


def tokens_at_once(config: RunConfig) -> float:
    """On one device, of one microbatch."""
    mesh, train = config.mesh, config.train
    return train.batch_size * config.data.sequence_length / (train.accumulate * mesh.data * mesh.fsdp * mesh.sequence)


def saved_per_token(model: TransformerConfig, remat: str) -> float:
    """Numbers saved on the device for each token of each layer: its input, and the products that are kept there."""
    if remat in ("offload", "offload_inputs"):
        return 0.0
    if remat == "full":
        return model.width
    heads = model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    wide = 0 if remat == "attention" else model.ffn * (2 if model.mlp in GATED else 1)
    products = heads + 2 * model.width + wide
    return model.width + products * (1.0 if remat != "none" else 2.0)


def _bytes(config: RunConfig, platform: str) -> float:
    model, mesh, train = config.model, config.mesh, config.train
    kept = state_on_devices(config, platform)
    cut = (mesh.fsdp if mesh.zero_stage >= first else 1 for first in CUT_FROM)
    state = sum(part / parts for part, parts in zip(kept, cut, strict=True))
    table = parameter_table(model)
    layer = sum(p.size for path, p in table.items() if path.startswith("layers/")) / model.layers
    ends = 2 * model.vocab_size * model.width
    whole = (2 * layer + ends) * (NARROW + WIDE) if mesh.fsdp > 1 else 0.0  # gathered, and their gradients
    tokens = tokens_at_once(config)
    saved = tokens * model.layers * saved_per_token(model, train.remat) * NARROW
    logits = 3 * WIDE * min(tokens, train.loss_chunk) * model.vocab_size
    return (state + whole + logits) / mesh.tensor + saved / (1 if train.remat == "full" else mesh.tensor)


def _seconds(config: RunConfig, asked: Target) -> float:
    model, mesh, train, chip = config.model, config.mesh, config.train, asked.chip
    if not chip.peak_flops:
        return 0.0
    tokens = tokens_at_once(config) * train.accumulate
    flops = run_flops(config).total * (1 + RECOMPUTED[train.remat])
    computing = tokens * flops / mesh.tensor / (chip.peak_flops / chip.devices * chip.product_share)
    numbers = sum(p.size for p in parameter_table(model).values()) / mesh.tensor
    moved = numbers * (train.accumulate * MOVED + 5 * WIDE / (mesh.fsdp if mesh.zero_stage else 1))
    computing = max(computing, moved / (chip.memory_bandwidth / chip.devices))
    networks = _networks(config, asked, tokens, numbers)
    return max(computing, networks) + 0.25 * min(computing, networks)


def _networks(config: RunConfig, asked: Target, tokens: float, numbers: float) -> float:
    """Seconds that a device sends in a step, of so many `tokens` of its own and `numbers` of the parameters.

    Slices or hosts lie along `data`, and what it does not divide of them along `fsdp` (`sharding/mesh.py`).
    """
    model, mesh = config.model, config.mesh
    apart = math.gcd(mesh.data, asked.domains)
    gradient = NARROW if config.train.reduce_dtype == "bfloat16" else WIDE
    along_fsdp = _sent(mesh.zero_stage, config.train.accumulate, gradient) * numbers
    summed = 2 * gradient * numbers / mesh.fsdp
    activations = 8 * NARROW * tokens * model.width * model.layers
    keys = NARROW * tokens * model.kv_heads * model.head_dim / mesh.tensor * model.layers
    rings = (6 * mesh.sequence - 4) * keys if mesh.sequence > 1 else 0.0  # keys, values and their gradients
    return (
        _ring(along_fsdp, mesh.fsdp, asked.domains // apart, asked)
        + _ring(summed, mesh.data * mesh.sequence, apart, asked)
        + _ring(activations, mesh.tensor, 1, asked)
        + (rings / asked.bandwidth(1) if rings else 0.0)
    )


def _ring(sent: float, devices: int, domains: int, asked: Target) -> float:
    """Seconds of collectives of so many devices, each of which would send `sent` bytes were they very many."""
    fast, slow = sent * (1 - domains / devices), sent * (domains - 1) / devices
    bandwidth = asked.bandwidth(asked.links(devices // domains)) or float("inf")
    return fast / bandwidth + slow / (asked.chip.slow_bandwidth / asked.chip.devices)


def _sent(stage: int, parts: int, gradient: int) -> float:
    """Bytes that a device sends along fsdp for each parameter, in `parts` microbatches, with `gradient` bytes of it."""
    if stage == 3:  # gathered forward and backward, the gradient scattered
        return parts * (2 * NARROW + gradient)
    if stage == 2:  # the gradient scattered, the parameter gathered after the step
        return parts * gradient + WIDE
    return gradient + (WIDE if stage == 1 else gradient)  # stage 0 sums: a scatter and a gather of the gradient
