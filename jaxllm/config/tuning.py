"""What of a model is trained, and what is added to it for that."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Another rank for some of the targets of LoRA."""

    targets: str = ""
    """A regex over modules such as `attention/query`; of several that match, the first one counts."""
    rank: int = 8
    """Of their updates."""
    alpha: float | None = None
    """None is that of the others."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates (2106.09685): h = W0 x + (alpha / rank) B A x, with B = 0 at the start."""

    targets: tuple[str, ...] = ("linear",)
    """Presets (`query_value`, the paper's; `attention`; `mlp`; `linear`, both) or regexes over modules such as
    `attention/query`, `mlp/down` or `cross_attention/`; `jaxllm model` lists them. Experts have no updates."""
    rank: int = 8
    """r, columns of A and rows of B."""
    alpha: float = 16.0
    """Over the rank it scales the update."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) (2312.03732)."""
    dropout: float = 0.0
    """Dropped share of what A reads, in training only."""
    ranks: tuple[RankConfig, ...] = ()
    """Other ranks for some of the targets."""
    magnitudes: bool = False
    """DoRA (2402.09353): the updated columns are scaled to norms that are learned too."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """How AdaLoRA (2303.10512) takes ranks from where they matter least; `lora.rank` is where they end on average."""

    start: float = 1.5
    """The rank at the start, times the last one."""
    warmup: float = 0.1
    """Share of the steps before the first rank is taken."""
    settled: float = 0.3
    """Share of the steps after the last one is."""
    every: int = 10
    """Steps between one choice and the next."""
    sensitivity_decay: float = 0.85
    """Of the moving average of |w dL/dw|."""
    uncertainty_decay: float = 0.85
    """Of the moving average of how far it strays."""
    orthogonality: float = 0.1
    """Weight of |P'P - I|^2 + |QQ' - I|^2 in the loss."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Virtual tokens that every text begins with."""

    length: int = 20
    """How many."""
    start: Literal["vocabulary", "uniform", "labels"] = "vocabulary"
    """They start as tokens drawn at random from the 5,000 commonest of the training text, as uniform numbers from -0.5
    to 0.5, or as the `labels` (2104.08691)."""
    labels: tuple[str, ...] = ()
    """Texts that the first ones start as, each the mean of its tokens; what is left starts as common tokens."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is trained, and what of the base stays as it is."""

    method: Literal["full", "lora", "adalora", "prompt", "prefix", "hybrid"] = "full"
    """All parameters; low-rank updates, of ranks that are fixed or chosen in training; virtual tokens, as embeddings
    (2104.08691) or as keys and values of each layer (2101.00190); or LoRA and prefixes with gates (2110.07577)."""
    also: tuple[str, ...] = ()
    """Regexes over the base's own parameters, such as `norm/scale` or `/bias$`: those are trained. Without any, all are
    where the method is `full`, and none elsewhere."""
    base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """In which what stays as it is is kept while it trains. int8 and nf4 are of the matrices of the blocks, 8.25 and
    4.25 bits a number (2305.14314); the rest is bfloat16 then, but for vectors. Whoever opens the run afterwards has
    the adapter on the base as its folder holds it, as with PEFT."""
    lora: LoraConfig = LoraConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()
    prompt: PromptConfig = PromptConfig()
