"""The table of what tuning adds to a model, and which parameters of a run are trained.

An adapter is a tree of its own whose leaves lie beside those that they change: `layers/attention/query/lora_a` beside
`layers/attention/query/kernel`. So the union of the two trees is what the model is called with, one set of rules cuts
both, and what is trained is a choice of paths. Nothing here imports jax.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from jaxllm.config import PromptConfig, RunConfig, TransformerConfig, TuningConfig
from jaxllm.models.table import Param, parameter_table

PRESETS = {
    "query_value": r"attention/(query|value)$",
    "attention": r"attention/(query|key|value|output)$",
    "mlp": r"mlp/(gate|up|down)$",
    "linear": r"(attention|mlp)/\w+$",
}
"""Targets by a name: those of the LoRA paper, and others that are usual."""

PUBLISHED = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
"""What the modules of a Llama are called by Hugging Face, and here."""

LOW_RANK = ("lora", "adalora", "hybrid")
"""Methods with low-rank updates."""

BLOCK = 64
"""The most numbers of a base in int8 or NF4 that share a scale (`quantization/blocks.py`)."""

VIRTUAL = ("prompt", "prefix", "hybrid")
"""Methods with virtual tokens: as embeddings, or as keys and values of each layer."""

TAKES_PLACES = ("prompt", "prefix")
"""Those whose virtual tokens take places of every text."""

LEARNED_KEYS = {
    "prefix": ("layers/attention/prefix_key", "layers/attention/prefix_value"),
    "hybrid": ("layers/attention/gated_key", "layers/attention/gated_value"),
}
"""Paths of learned keys and values, by the methods that have them."""

READS = {"lora": LOW_RANK, "adaptive": ("adalora",), "prompt": VIRTUAL}
"""Which methods read a group of settings."""


@dataclass(frozen=True)
class Update:
    """A low-rank update of one module, all of whose layers have the same rank."""

    module: str
    """Its path, `layers/attention/query`."""
    kernel: Param
    rank: int
    final_rank: int
    """What is left of the rank on average, where ranks are taken while the run goes on."""
    alpha: float
    rank_stabilised: bool

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (math.sqrt(self.final_rank) if self.rank_stabilised else self.final_rank)

    @property
    def inputs(self) -> int:
        """Numbers that the module reads."""
        return math.prod(self.kernel.shape[1 : 1 + self.kernel.reads])

    @property
    def outputs(self) -> int:
        """Numbers that it writes."""
        return math.prod(self.kernel.shape[1 + self.kernel.reads :])


def linear_modules(model: TransformerConfig) -> dict[str, Param]:
    """The linear maps of blocks that can have an update, by their paths: all but those of experts."""
    table = parameter_table(model).items()
    found = {path.removesuffix("/kernel"): leaf for path, leaf in table if path.endswith("/kernel")}
    return {module: leaf for module, leaf in found.items() if leaf.axes[0] == "L" and not {"E", "J"} & set(leaf.axes)}


def matches(pattern: str, name: str) -> bool:
    """Whether a regex is found in a name; one that is none is found nowhere, and `tuning_mistakes` tells of it."""
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False


def updates(model: TransformerConfig, tuning: TuningConfig) -> list[Update]:
    """The low-rank updates of a run, in the order of the table."""
    if tuning.method not in LOW_RANK:
        return []
    lora, found = tuning.lora, []
    wanted = [PRESETS.get(target, target) for target in lora.targets]
    for module, kernel in linear_modules(model).items():
        if any(matches(pattern, module) for pattern in wanted):
            own = None if (i := _own_rank(tuning, module)) is None else lora.ranks[i]
            rank = final = own.rank if own else lora.rank
            if tuning.method == "adalora":
                rank = math.ceil(final * tuning.adaptive.start)
            alpha = lora.alpha if own is None or own.alpha is None else own.alpha
            found.append(Update(module, kernel, rank, final, alpha, lora.rank_stabilised))
    return found


def _own_rank(tuning: TuningConfig, module: str) -> int | None:
    """Which of `lora.ranks` a module has."""
    return next((i for i, other in enumerate(tuning.lora.ranks) if matches(other.targets, module)), None)


def adapter_table(model: TransformerConfig, tuning: TuningConfig) -> dict[str, Param]:
    """`{path: Param}` of what a method adds to a model.

    A starts uniform within 1 / sqrt(inputs), as the code of 2106.09685 has it, and B at 0, so that the model is at
    first its base. AdaLoRA's columns and rows are drawn with a length of 1, near what is to be orthogonal; its diagonal
    is 0.
    """
    table: dict[str, Param] = {}
    for update in updates(model, tuning):
        table |= _low_rank(update, tuning)
    length = tuning.prompt.length
    if tuning.method == "prompt":
        table["prompt/tokens"] = Param((length, model.width), ("U", "D"), 1 / math.sqrt(12), law="uniform")
    if tuning.method in LEARNED_KEYS:
        sizes = model.layers, length, model.kv_heads, model.head_dim
        leaf = Param(sizes, ("L", "U", "K", "H"), 1 / math.sqrt(12), law="uniform")
        table |= dict.fromkeys(LEARNED_KEYS[tuning.method], leaf)
        if tuning.method == "hybrid":
            table["layers/attention/gate"] = Param((model.layers, model.heads), ("L", "N"), 0.0)
    return table


def _low_rank(update: Update, tuning: TuningConfig) -> dict[str, Param]:
    kernel, rank, module = update.kernel, update.rank, update.module
    (layers, *shape), (_, *axes), reads = kernel.shape, kernel.axes, kernel.reads
    first = (layers, *shape[:reads], rank), ("L", *axes[:reads], "Q")
    second = (layers, rank, *shape[reads:]), ("L", "Q", *axes[reads:])
    if tuning.method == "adalora":
        table = {
            f"{module}/lora_a": Param(*first, 1 / math.sqrt(update.inputs)),
            f"{module}/lora_b": Param(*second, 1 / math.sqrt(update.outputs)),
            f"{module}/lora_e": Param((layers, rank), ("L", "Q"), 0.0),
        }
    else:
        std = 1 / math.sqrt(3 * update.inputs)
        table = {f"{module}/lora_a": Param(*first, std, law="uniform"), f"{module}/lora_b": Param(*second, 0.0)}
    if tuning.lora.magnitudes:
        table[f"{module}/lora_magnitude"] = Param((layers, *shape[reads:]), ("L", *axes[reads:]), 0.0, 1.0)
    if tuning.method == "hybrid":
        table[f"{module}/lora_gate"] = Param((layers,), ("L",), 0.0, 1.0)
    return table


def whole_table(config: RunConfig) -> dict[str, Param]:
    """All parameters that the model of a run is called with."""
    return parameter_table(config.model) | adapter_table(config.model, config.tuning)


def trained_table(config: RunConfig) -> dict[str, Param]:
    """Those that are trained: what gradients, the optimizer's state and checkpoints are of."""
    tuning, base = config.tuning, parameter_table(config.model)
    if tuning.method == "full" and not tuning.also:
        return base
    own = {path: leaf for path, leaf in base.items() if any(matches(pattern, path) for pattern in tuning.also)}
    return own | adapter_table(config.model, tuning)


def frozen_table(config: RunConfig) -> dict[str, Param]:
    """Those of the base that stay as they are."""
    trained = trained_table(config)
    return {path: leaf for path, leaf in parameter_table(config.model).items() if path not in trained}


def kept_as(path: str, leaf: Param, base_dtype: str) -> str:
    """In which type a parameter of the base is kept that is not trained: vectors are float32."""
    if base_dtype == "float32" or path.endswith(("scale", "bias")):
        return "float32"
    return base_dtype if leaf.is_matrix and leaf.axes[0] == "L" else "bfloat16"


def bytes_a_number(path: str, leaf: Param, base_dtype: str) -> float:
    """Of such a parameter, the scales of blocks included."""
    of_scale = 2 / block_size(leaf.shape[-1])
    sizes = {"float32": 4, "bfloat16": 2, "int8": 1 + of_scale, "nf4": 0.5 + of_scale}
    return sizes[kept_as(path, leaf, base_dtype)]


def block_size(last: int) -> int:
    """Numbers of a matrix's last axis, of that length, that share a scale; even, or the axis is odd."""
    return max(n for n in range(1, min(BLOCK, last) + 1) if last % n == 0 and (n % 2 == 0 or last % 2))


def virtual_tokens(tuning: TuningConfig) -> int:
    """Places at the beginning of every text that virtual tokens take."""
    return tuning.prompt.length if tuning.method in TAKES_PLACES else 0


def virtual_ids(config: RunConfig) -> range:
    """The ids of these tokens: those after the vocabulary of the model."""
    size = config.model.vocab_size
    return range(size, size + virtual_tokens(config.tuning))


def tuning_mistakes(config: RunConfig) -> Iterator[str]:
    """What is wrong with how a run is tuned, each as `field = value: what it must be`."""
    tuning, model = config.tuning, config.model
    if tuning.method != "full" and model.architecture == "encoder_decoder" and tuning.method not in ("lora", "adalora"):
        yield f"tuning.method = {tuning.method!r}: is for one stack; 'lora' would do for an encoder-decoder"
    if tuning.method in VIRTUAL and model.architecture == "encoder":
        yield f"tuning.method = {tuning.method!r}: needs model.architecture = 'decoder'; 'lora' would do"
    if config.base is None and (tuning.method != "full" or tuning.also):
        yield f"base = None: tuning.method = {tuning.method!r} needs the folder of a model that it begins with"
    yield from _unread(config)
    for i, other in enumerate(tuning.lora.ranks):
        if not other.targets:
            yield f"tuning.lora.ranks.{i}.targets is empty: a regex over the modules that have this rank would do"
            return
        if other.rank < 1 or (other.alpha is not None and other.alpha <= 0):
            yield f"tuning.lora.ranks.{i}: rank = {other.rank} and alpha = {other.alpha} must be above 0"
            return
    patterns = [*_patterns(tuning, model)]
    yield from patterns
    yield from [] if patterns else _ranks_above(model, tuning)
    if tuning.base_dtype == "nf4" and (path := next(_odd(config), None)) is not None:
        yield f"tuning.base_dtype = 'nf4': two numbers are a byte, and the last axis of {path} is odd; 'int8' would do"
    if tuning.method in VIRTUAL:
        yield from _of_prompts(tuning.prompt, config.data.sequence_length)
    if tuning.method == "hybrid" and tuning.lora.magnitudes:
        yield "tuning.lora.magnitudes = True: what DoRA does to norms has no gate, as 'hybrid' needs; False would do"
    if tuning.method == "adalora" and config.train.ema_decay is not None:
        yield (
            f"train.ema_decay = {config.train.ema_decay}: the average of ranks that come and go has all of them; None "
            "would do for tuning.method = 'adalora'"
        )
    if tuning.method == "adalora" and config.train.skip_nonfinite and tuning.adaptive.settled == 0:
        yield (
            "tuning.adaptive.settled = 0.0: after a step that train.skip_nonfinite skips, ranks would be left above "
            "the budget; 0.1 would do"
        )
    if tuning.method == "adalora" and tuning.adaptive.warmup + tuning.adaptive.settled >= 1:
        yield (
            f"tuning.adaptive.warmup = {tuning.adaptive.warmup}, settled = {tuning.adaptive.settled}: together they "
            "must be below 1, so that there are steps in which ranks are taken"
        )


def _of_prompts(prompt: PromptConfig, sequence_length: int) -> Iterator[str]:
    if prompt.length > sequence_length - 2:
        yield (
            f"tuning.prompt.length = {prompt.length}: leaves no place for text in data.sequence_length = "
            f"{sequence_length}; at most {sequence_length - 2} would do"
        )
    if prompt.start == "labels" and not prompt.labels:
        yield "tuning.prompt.labels is empty: tuning.prompt.start = 'labels' begins with them"
    if prompt.start == "labels" and (labels := len(prompt.labels)) > prompt.length:
        yield (
            f"tuning.prompt.labels has {labels} texts, above tuning.prompt.length = {prompt.length}; a length of "
            f"{labels} would do"
        )


def _unread(config: RunConfig) -> Iterator[str]:
    """Settings that the method does not read, at other values than their defaults."""
    tuning, method = config.tuning, f"tuning.method = {config.tuning.method!r}"
    if tuning.base_dtype != "float32" and not frozen_table(config):
        yield f"tuning.base_dtype = {tuning.base_dtype!r}: {method} trains all parameters; 'float32' would do"
    for group, readers in READS.items():
        for field in [] if tuning.method in readers else fields(getattr(tuning, group)):
            value = getattr(getattr(tuning, group), field.name)
            if value != field.default:
                would = f"{field.default!r} would do, or tuning.method = {' or '.join(map(repr, readers))}"
                yield f"tuning.{group}.{field.name} = {value!r:.60}: {method} does not read it; {would}"
    if tuning.prompt.labels and tuning.prompt.start != "labels" and tuning.method in VIRTUAL:
        yield (
            f"tuning.prompt.labels = {tuning.prompt.labels!r:.60}: is read with tuning.prompt.start = 'labels' only; "
            "none would do"
        )


def _ranks_above(model: TransformerConfig, tuning: TuningConfig) -> Iterator[str]:
    narrowest: dict[int | None, Update] = {}
    for update in sorted(updates(model, tuning), key=lambda update: min(update.inputs, update.outputs)):
        narrowest.setdefault(_own_rank(tuning, update.module), update)
    for i, update in narrowest.items():
        limit = min(update.inputs, update.outputs)
        if update.rank > limit:
            field = "tuning.lora.rank" if i is None else f"tuning.lora.ranks.{i}.rank"
            grown = tuning.adaptive.start if tuning.method == "adalora" else 1
            most = max(r for r in range(limit + 1) if math.ceil(r * grown) <= limit)
            remedy = f"at most {most} would do" if most else f"at most {limit} for tuning.adaptive.start would do"
            yield (
                f"{field} = {update.final_rank}: the update of {update.module} has rank {update.rank}"
                f"{' at first' if tuning.method == 'adalora' else ''}, above its {update.inputs} inputs and "
                f"{update.outputs} outputs; {remedy}"
            )


def _odd(config: RunConfig) -> Iterator[str]:
    """Paths of parameters that would be kept in NF4, and whose last axis is odd."""
    for path, leaf in frozen_table(config).items():
        if kept_as(path, leaf, "nf4") == "nf4" and leaf.shape[-1] % 2:
            yield path


def _patterns(tuning: TuningConfig, model: TransformerConfig) -> Iterator[str]:
    modules, paths = linear_modules(model), parameter_table(model)
    wanted = [(f"tuning.also.{i}", pattern, paths) for i, pattern in enumerate(tuning.also)]
    if tuning.method in LOW_RANK:
        lora = tuning.lora
        if not lora.targets:
            yield f"tuning.lora.targets is empty: one of {', '.join(PRESETS)}, or a regex over modules, would do"
        wanted += [(f"tuning.lora.targets.{i}", target, modules) for i, target in enumerate(lora.targets)]
        chosen = {
            name: leaf for name, leaf in modules.items() if any(matches(PRESETS.get(t, t), name) for t in lora.targets)
        }
        wanted += [(f"tuning.lora.ranks.{i}.targets", other.targets, chosen) for i, other in enumerate(lora.ranks)]
        yield from _never_read(tuning, chosen)
    for field, target, among in wanted:
        yield from _matches_nothing(field, target, among)


def _never_read(tuning: TuningConfig, modules: Mapping[str, Param]) -> Iterator[str]:
    for i, other in enumerate(tuning.lora.ranks):
        own = {_own_rank(tuning, module) for module in modules if matches(other.targets, module)}
        if own and i not in own:
            earlier = " and ".join(f"tuning.lora.ranks.{j}" for j in sorted(j for j in own if j is not None))
            yield (
                f"tuning.lora.ranks.{i}.targets = {other.targets!r}: {earlier} matches all of it, and the first "
                "counts; leave one out, or put the narrower first"
            )


def _matches_nothing(field: str, target: str, names: Mapping[str, Param]) -> Iterator[str]:
    try:
        if any(re.search(PRESETS.get(target, target), name) for name in names):
            return
    except re.error as error:
        yield f"{field} = {target!r}: is not a regex ({error})"
        return
    plain = re.sub(r"[^\w/]+", "", target)
    plain = PUBLISHED.get(plain, plain)
    near = sorted(names, key=lambda name: -max(_likeness(plain, name), _likeness(plain, name.rpartition("/")[2])))
    yield f"{field} = {target!r}: matches nothing; the nearest are {', '.join(near[:3])}"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
