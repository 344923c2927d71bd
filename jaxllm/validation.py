"""What a configuration must satisfy: all mistakes at once, before any compile."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxllm.common.corrupted import target_length
from jaxllm.config import (
    GATED,
    OBJECTIVES_OF,
    PUBLISHED_NOISE,
    OptimizerConfig,
    RunConfig,
    TokenizerConfig,
    TransformerConfig,
    UserError,
    data_mistakes,
    read_dict,
    to_dict,
)
from jaxllm.models.adapters import tuning_mistakes
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
    "model.encoder_layers": COUNT,
    "model.experts": NOT_NEGATIVE,
    "model.experts_per_token": COUNT,
    "model.router_loss": NOT_NEGATIVE,
    "model.position_offset": NOT_NEGATIVE,
    "model.relative_buckets": Range(4),
    "model.relative_distance": COUNT,
    "model.rope_theta": POSITIVE,
    "model.rope_fraction": Range(0, 1, low_open=True, high_open=False),
    "model.rope_scaling.factor": POSITIVE,
    "model.rope_scaling.original_positions": COUNT,
    "model.rope_scaling.low": POSITIVE,
    "model.rope_scaling.high": POSITIVE,
    "model.rope_scaling.attention_factor": POSITIVE,
    "model.local_rope_theta": POSITIVE,
    "model.attention_scale": POSITIVE,
    "model.logit_scale": POSITIVE,
    "model.global_every": Range(2),
    "model.token_types": NOT_NEGATIVE,
    "model.labels": NOT_NEGATIVE,
    "model.start_token": NOT_NEGATIVE,
    "model.attention_softcap": POSITIVE,
    "model.logit_softcap": POSITIVE,
    "model.sliding_window": COUNT,
    "model.dropout": DECAY,
    "model.first_dropout": DECAY,
    "model.init_std": POSITIVE,
    "data.mixture.cap": COUNT,
    "data.mixture.temperature": POSITIVE,
    "data.sequence_length": Range(2),
    "data.validation_fraction": DECAY,
    "data.workers": NOT_NEGATIVE,
    "tokenizer.vocab_size": COUNT,
    "tokenizer.train_megabytes": POSITIVE,
    "objective.noise": INSIDE,
    "objective.mean_span": Range(1),
    "objective.target_length": Range(2),
    "tuning.lora.rank": COUNT,
    "tuning.lora.alpha": POSITIVE,
    "tuning.lora.dropout": DECAY,
    "tuning.adaptive.start": Range(1),
    "tuning.adaptive.warmup": DECAY,
    "tuning.adaptive.settled": DECAY,
    "tuning.adaptive.every": COUNT,
    "tuning.adaptive.sensitivity_decay": DECAY,
    "tuning.adaptive.uncertainty_decay": DECAY,
    "tuning.adaptive.orthogonality": NOT_NEGATIVE,
    "tuning.prompt.length": COUNT,
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
    "data.passage_words": COUNT,
    "eval.max_tokens": COUNT,
    "eval.last_tokens": COUNT,
    "eval.task_rows": COUNT,
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
        *_objective(config),
        *_tuning(config),
        *data_mistakes(config.data, config.objective.kind),
        *_extra_tokens(config.tokenizer),
        *_schedule(config.optimizer, config.train.steps),
        *_between_parts(config),
        *(() if any(field.startswith("mesh.") for field in unread) else mesh_mistakes(config, devices)),
    ]
    return [*wrong.values(), *(line for line in found if not silent.search(line))]


def model_problems(model: TransformerConfig) -> list[str]:
    """The same of a model alone, whose values are of the right types."""
    return [*_out_of_range(RunConfig(model=model), "model."), *_model(model)]


def _out_of_range(config: RunConfig, below: str = "") -> Iterator[str]:
    """Of the fields whose path begins with `below`."""
    for path, allowed in RANGES.items():
        if not path.startswith(below):
            continue
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        if value is not None and not allowed.holds(value):
            yield f"{path} = {value}: must be {allowed}"


def _name(name: str) -> Iterator[str]:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        yield f"name = {name!r}: must name a folder, without '/'; for a path set output"


def _model(model: TransformerConfig) -> Iterator[str]:
    if _is_in_range(model, "heads") and not is_multiple(model.heads, model.kv_heads):
        fitting = divisors(model.heads)
        yield (
            f"model.kv_heads = {model.kv_heads}: must divide model.heads = {model.heads}; "
            f"{neighbours(fitting, model.kv_heads)} would do"
        )
    if model.positions == "rope":
        yield from _rope(model)
    if 0 < model.experts < model.experts_per_token:
        yield (
            f"model.experts_per_token = {model.experts_per_token}: is more than model.experts = {model.experts}; "
            f"at most {model.experts} would do"
        )
    if model.positions == "relative" and 2 * model.relative_distance <= model.relative_buckets:
        yield (
            f"model.relative_distance = {model.relative_distance}: must be above half of model.relative_buckets = "
            f"{model.relative_buckets}; {model.relative_buckets // 2 + 1} would do"
        )
    if model.start_token is not None and model.start_token >= model.vocab_size > 0:
        yield (
            f"model.start_token = {model.start_token}: must be below model.vocab_size = {model.vocab_size}; "
            "none takes the padding token"
        )
    for field, off, needed, holds in _NEEDS:
        if getattr(model, field) != off and _is_in_range(model, field) and not holds(model):
            yield f"model.{field} = {getattr(model, field)!r}: needs {needed}; {off!r} would do"


_NEEDS: tuple[tuple[str, Any, str, Callable[[TransformerConfig], bool]], ...] = (
    ("shared_norm", False, "model.parallel_residual and no experts", lambda m: m.parallel_residual and not m.experts),
    ("parallel_residual", False, "model.norm_place = 'pre'", lambda m: m.norm_place == "pre"),
    ("parallel_residual", False, "no cross-attention", lambda m: m.architecture != "encoder_decoder"),
    ("experts", 0, "a gated model.mlp without biases", lambda m: m.mlp in GATED and not m.mlp_bias),
    ("global_every", None, "model.sliding_window", lambda m: m.sliding_window is not None),
    ("local_rope_theta", None, "model.sliding_window", lambda m: m.sliding_window is not None),
    ("sliding_window", None, "model.architecture = 'decoder'", lambda m: m.architecture == "decoder"),
    ("encoder_layers", None, "model.architecture = 'encoder_decoder'", lambda m: m.architecture == "encoder_decoder"),
    ("start_token", None, "model.architecture = 'encoder_decoder'", lambda m: m.architecture == "encoder_decoder"),
    ("token_types", 0, "model.architecture = 'encoder'", lambda m: m.architecture == "encoder"),
    ("pooler", False, "model.architecture = 'encoder'", lambda m: m.architecture == "encoder"),
    ("labels", 0, "model.architecture = 'encoder'", lambda m: m.architecture == "encoder"),
)
"""Fields that, unless they stand at a value, need something of the model."""


def _is_in_range(model: TransformerConfig, field: str) -> bool:
    allowed, value = RANGES.get(f"model.{field}"), getattr(model, field)
    return allowed is None or value is None or allowed.holds(value)


def _rope(model: TransformerConfig) -> Iterator[str]:
    if not _is_in_range(model, "rope_fraction"):
        return
    scaling, rotated = model.rope_scaling, int(model.head_dim * model.rope_fraction)
    if rotated % 2 and model.rope_fraction == 1:
        yield (
            f"model.head_dim = {model.head_dim}: must be even, since RoPE rotates pairs; "
            f"{multiples(model.head_dim, 2)} would do"
        )
    elif model.head_dim > 0 and (rotated % 2 or not rotated):
        yield (
            f"model.rope_fraction = {model.rope_fraction}: rotates {rotated} of model.head_dim = {model.head_dim} "
            "numbers, and must rotate pairs; 1.0 would do for an even model.head_dim"
        )
    if scaling.kind in ("llama3", "yarn") and scaling.low >= scaling.high:
        yield (
            f"model.rope_scaling.low = {scaling.low}: must be below model.rope_scaling.high = {scaling.high}; "
            f"{'1.0 and 32.0' if scaling.kind == 'yarn' else '1.0 and 4.0'} are the published ones"
        )


def _objective(config: RunConfig) -> Iterator[str]:
    """What one objective reads and another has no use for."""
    objective = config.objective
    kind, encodes = objective.kind, objective.kind in OBJECTIVES_OF["encoder_decoder"]
    if kind not in (fitting := OBJECTIVES_OF[config.model.architecture]):
        yield (
            f"objective.kind = {kind!r}: is not for model.architecture = {config.model.architecture!r}; "
            f"{' or '.join(map(repr, fitting))} would do"
        )
    if objective.noise is not None and kind not in PUBLISHED_NOISE:
        yield f"objective.noise = {objective.noise}: kind {kind!r} hides nothing; None would do"
    if objective.whole_words and kind != "masked":
        yield f"objective.whole_words = True: kind {kind!r} does not read it; 'masked' does"
    if objective.weigh != "tokens" and kind != "sft":
        yield f"objective.weigh = {objective.weigh!r}: kind {kind!r} has no conversations; 'tokens' would do"
    if objective.target_length and not encodes:
        yield f"objective.target_length = {objective.target_length}: kind {kind!r} has one kind of row; None would do"
    if encodes and not any(_out_of_range(config, "objective.")):
        yield from _decoder_rows(config)


def _decoder_rows(config: RunConfig) -> Iterator[str]:
    length, most = target_length(config.objective, config.data.sequence_length), config.model.max_positions
    if length > most > 0:
        yield (
            f"objective.target_length = {config.objective.target_length}: the decoder's rows have {length} places, "
            f"more than model.max_positions = {most}; at most {most}, or a shorter data.sequence_length, would do"
        )


def _tuning(config: RunConfig) -> Iterator[str]:
    """Held against the model, where both are in their ranges."""
    if not any(any(_out_of_range(config, part)) for part in ("model.", "tuning.")):
        yield from tuning_mistakes(config)


def _extra_tokens(tokenizer: TokenizerConfig) -> Iterator[str]:
    extra, where = tokenizer.extra_tokens, f"tokenizer.extra_tokens = {tokenizer.extra_tokens!r:.80}"
    if extra and tokenizer.path is not None:
        yield f"{where}: only a tokenizer that is trained can be given any; put them into the file tokenizer.path"
    if any(not token or any(map(str.isspace, token)) for token in extra):
        yield f"{where}: a token must be a word, without spaces"
    if len(set(extra)) < len(extra):
        yield f"{where}: {next(token for token in extra if extra.count(token) > 1)!r} is there twice"


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
    if (tokenizer.path, config.base) == (None, None) and tokenizer.vocab_size > model.vocab_size > 0:
        yield (
            f"model.vocab_size = {model.vocab_size}: must hold the tokenizer; at least "
            f"tokenizer.vocab_size = {tokenizer.vocab_size} would do"
        )
    if config.objective.kind == "sft" and (config.base, tokenizer.path, tokenizer.chat_template) == (None, None, None):
        yield (
            "tokenizer.chat_template = None: there is none beside a tokenizer that is trained; 'plain', or a .jinja "
            "file, would do"
        )
    if not is_multiple(train.batch_size, train.accumulate):
        yield (
            f"train.batch_size = {train.batch_size}: must be a multiple of train.accumulate = "
            f"{train.accumulate}; {multiples(train.batch_size, train.accumulate)} would do"
        )
