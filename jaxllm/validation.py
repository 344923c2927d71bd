"""What a configuration must satisfy: all mistakes at once, before any compile."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxllm.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TransformerConfig,
    UserError,
    read_dict,
    to_dict,
)
from jaxllm.sharding.preflight import divisors, is_multiple, mesh_mistakes, multiples, neighbours


class Range(NamedTuple):
    """What a number may be; an open end is not reached."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = True

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the range; NaN lies in none."""
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.low_open else 'at least'} {self.low}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.high_open else 'at most'} {self.high}"


COUNT = Range(1, 2**31)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1, high_open=False)
DECAY = Range(0, 1)
INSIDE = Range(0, 1, low_open=True)

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32),
    "log_every": COUNT,
    "profile_steps": NOT_NEGATIVE,
    "model.vocab_size": COUNT,
    "model.width": COUNT,
    "model.layers": COUNT,
    "model.heads": COUNT,
    "model.kv_heads": COUNT,
    "model.head_dim": COUNT,
    "model.ffn": COUNT,
    "model.max_positions": COUNT,
    "model.norm_eps": POSITIVE,
    "model.rope_theta": POSITIVE,
    "model.attention_softcap": POSITIVE,
    "model.logit_softcap": POSITIVE,
    "model.sliding_window": COUNT,
    "model.dropout": DECAY,
    "model.init_std": POSITIVE,
    "data.sequence_length": Range(2),
    "data.validation_fraction": DECAY,
    "data.workers": NOT_NEGATIVE,
    "tokenizer.vocab_size": COUNT,
    "tokenizer.train_megabytes": POSITIVE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.adam_learning_rate": POSITIVE,
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.schedule.warmup_steps": NOT_NEGATIVE,
    "optimizer.schedule.final_fraction": SHARE,
    "optimizer.schedule.decay_fraction": SHARE,
    "train.steps": COUNT,
    "train.batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.loss_chunk": COUNT,
    "train.z_loss": NOT_NEGATIVE,
    "train.ema_decay": INSIDE,
    "eval.every": NOT_NEGATIVE,
    "eval.max_tokens": COUNT,
    "eval.sample_tokens": NOT_NEGATIVE,
    "checkpoint.every": NOT_NEGATIVE,
    "checkpoint.keep": COUNT,
}
"""Every number of a `RunConfig` but those of the mesh and of the sources, and what it may be."""


def refuse(mistakes: Sequence[str]) -> None:
    """Passes a configuration in which no mistake was found.

    Raises:
        UserError: with all that were, a line each.
    """
    if mistakes:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise UserError("\n  ".join([f"{count} in the configuration:", *mistakes]))


def problems(config: RunConfig, devices: int | None = None, unread: Iterable[str] = ()) -> list[str]:
    """Each mistake as `field = value: what it must be`.

    Args:
        config: with any values.
        devices: that there are; the mesh is held against them where they are known.
        unread: fields that stand at another value than was asked for: nothing is said that follows from one.
    """
    config, wrong = read_dict(RunConfig, to_dict(config))
    unread = {*unread, *wrong}
    mention = (rf"\b{re.escape(field)}\b" if "." in field else f"^{field} = " for field in unread)
    silent = re.compile("|".join(mention) or "$^")
    found = [
        *_out_of_range(config),
        *_name(config.name),
        *_model(config.model),
        *_sources(config.data),
        *_schedule(config.optimizer, config.train.steps),
        *_between_parts(config),
        *(() if any(field.startswith("mesh.") for field in unread) else mesh_mistakes(config, devices)),
    ]
    return [*wrong.values(), *(line for line in found if not silent.search(line))]


def _out_of_range(config: RunConfig) -> Iterator[str]:
    for path, allowed in RANGES.items():
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        if value is not None and not allowed.holds(value):
            yield f"{path} = {value}: must be {allowed}"


def _name(name: str) -> Iterator[str]:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        yield f"name = {name!r}: must name a folder, without '/'; for a path set output"


def _model(model: TransformerConfig) -> Iterator[str]:
    if not is_multiple(model.heads, model.kv_heads):
        fitting = divisors(model.heads)
        yield (
            f"model.kv_heads = {model.kv_heads}: must divide model.heads = {model.heads}; "
            f"{neighbours(fitting, model.kv_heads)} would do"
        )
    if model.positions == "rope" and model.head_dim % 2:
        yield (
            f"model.head_dim = {model.head_dim}: must be even, since RoPE rotates pairs; "
            f"{multiples(model.head_dim, 2)} would do"
        )


def _sources(data: DataConfig) -> Iterator[str]:
    if not data.sources:
        yield "data.sources is empty: give one source"
    for i, source in enumerate(data.sources):
        where = f"data.sources.{i}"
        if source.kind == "stdlib" and source.path is not None:
            yield f"{where}.path = {source.path!r}: kind 'stdlib' has none; set {where}.kind to what the path holds"
        if source.kind != "stdlib" and not source.path:
            wanted = "the name of a data set" if source.kind == "tfds" else "a file, a folder or a glob"
            yield f"{where}.path = {source.path!r}: kind {source.kind!r} needs {wanted}"
        if not NOT_NEGATIVE.holds(source.weight):
            yield f"{where}.weight = {source.weight}: must be {NOT_NEGATIVE}"
    if data.sources and not any(source.weight for source in data.sources):
        yield "data.sources: every weight is 0; give one source a positive weight"


def _schedule(optimizer: OptimizerConfig, steps: int) -> Iterator[str]:
    schedule = optimizer.schedule
    where = f"optimizer.schedule.warmup_steps = {schedule.warmup_steps}"
    falling = round(steps * schedule.decay_fraction) if SHARE.holds(schedule.decay_fraction) else 0
    if schedule.warmup_steps > steps > 0:
        yield f"{where}: is more than train.steps = {steps}; at most {steps} would do"
    elif schedule.kind == "wsd" and schedule.warmup_steps + falling > steps > 0:
        yield (
            f"{where}: leaves fewer than the {falling} steps that decay (optimizer.schedule.decay_fraction = "
            f"{schedule.decay_fraction} of train.steps = {steps}); at most {steps - falling} would do"
        )


def _between_parts(config: RunConfig) -> Iterator[str]:
    """What ties the model, the data and the tokenizer to each other."""
    model, data, tokenizer, train = config.model, config.data, config.tokenizer, config.train
    if data.sequence_length > model.max_positions > 0:
        yield (
            f"data.sequence_length = {data.sequence_length}: is more than model.max_positions = "
            f"{model.max_positions}; at most {model.max_positions} would do"
        )
    if tokenizer.path is None and tokenizer.vocab_size > model.vocab_size > 0:
        yield (
            f"model.vocab_size = {model.vocab_size}: must hold the tokenizer; at least "
            f"tokenizer.vocab_size = {tokenizer.vocab_size} would do"
        )
    if not is_multiple(train.batch_size, train.accumulate):
        yield (
            f"train.batch_size = {train.batch_size}: must be a multiple of train.accumulate = "
            f"{train.accumulate}; {multiples(train.batch_size, train.accumulate)} would do"
        )
