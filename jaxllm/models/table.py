"""The parameter table: shape, logical axes and initial spread of every leaf.

Initialisation, sharding, counts, memory and weight decay all follow from it. Nothing here imports jax.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from jaxllm.common.axes import LEGEND, Axes
from jaxllm.config import GATED, TransformerConfig


@dataclass(frozen=True)
class Param:
    """One leaf."""

    shape: tuple[int, ...]
    axes: Axes
    """A letter of `common/axes.py` for each dimension."""
    std: float
    """Standard deviation of what it is drawn from at the start; 0 starts at `start`."""
    start: float = 0.0
    """The constant that it starts at when `std` is 0."""
    law: Literal["normal", "uniform"] = "normal"
    """What it is drawn from; around 0."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """A linear map of a block or a head, or a factor of one: what weight decay and Muon apply to."""
        return self.axes[0] not in "VPYR" and (self.std > 0 or self.is_factor)

    @property
    def is_factor(self) -> bool:
        """One of the two factors of a low-rank update."""
        return "Q" in self.axes and len(self.axes) > 2

    @property
    def reads(self) -> int:
        """Of a block's matrix, how many axes after the layer's are summed over; the others are written."""
        return 1 if self.axes[1] in "DQ" else len(self.axes) - 2


def parameter_table(config: TransformerConfig) -> dict[str, Param]:
    """`{path: Param}` of a model. Leaves under `layers/` and `encoder/layers/` lead with the layer axis.

    Matrices start from N(0, `init_std`); those that write into the residual stream (`output`, `down`) from
    N(0, `init_std` / sqrt(2 layers)), so that the stream's variance does not grow with depth (GPT-2). Norm
    scales start so that they scale by 1, and biases at 0.
    """
    draw = _Draw(config, config.layers)
    table = {"embedding/tokens": draw.leaf("VD", config.init_std)}
    if config.token_types:
        table["embedding/types"] = draw.leaf("YD", config.init_std)
    table |= draw.stack("", cross=config.architecture == "encoder_decoder")
    if config.architecture == "encoder_decoder":
        table |= _Draw(config, config.encoder_layers or config.layers).stack("encoder/", cross=False)
    return table | draw.heads()


class _Draw:
    """The entries of one stack of blocks, and of what stands around it."""

    def __init__(self, config: TransformerConfig, layers: int):
        self.config, self.std = config, config.init_std
        self.residual_std = config.init_std / math.sqrt(2 * layers)
        self.sizes = {letter: getattr(config, field) for letter, field in LEGEND.items()}
        self.sizes |= {"L": layers, "P": config.max_positions + config.position_offset}

    def leaf(self, axes: str, std: float = 0.0, start: float = 0.0) -> Param:
        return Param(tuple(self.sizes[a] for a in axes), tuple(axes), std, start)

    def norm(self, path: str, axes: str, kind: str | None = None) -> dict[str, Param]:
        scale = self.leaf(axes, start=0.0 if self.config.zero_centred_norms else 1.0)
        bias = {f"{path}/bias": self.leaf(axes)} if (kind or self.config.norm) == "layer" else {}
        return {f"{path}/scale": scale, **bias}

    def linear(self, path: str, axes: str, bias: str | None, std: float | None = None) -> dict[str, Param]:
        kernel = {f"{path}/kernel": self.leaf(axes, self.std if std is None else std)}
        return kernel if bias is None else kernel | {f"{path}/bias": self.leaf(bias)}

    def stack(self, prefix: str, cross: bool) -> dict[str, Param]:
        """All layers, and what is added to the embedding or to scores before them."""
        config, table = self.config, dict[str, Param]()
        if config.positions == "learned":
            table[f"{prefix}embedding/positions"] = self.leaf("PD", self.std)
        if config.embedding_norm:
            table |= self.norm(f"{prefix}embedding/norm", "D")
        if config.positions == "relative":
            table[f"{prefix}relative/buckets"] = self.leaf("RN", self.std)
        layers = self.attention("attention", config.qk_norm)
        if cross:
            layers |= self.attention("cross_attention", "none")
        layers |= self.experts() if config.experts else self.mlp()
        table |= {f"{prefix}layers/{path}": leaf for path, leaf in layers.items()}
        return table if config.norm_place == "post" else table | self.norm(f"{prefix}final_norm", "D")

    def norms(self, branch: str) -> dict[str, Param]:
        """Of one branch."""
        after = self.norm(f"{branch}_post_norm", "LD") if self.config.norm_place == "both" else {}
        return self.norm(f"{branch}_norm", "LD") | after

    def attention(self, name: str, qk_norm: str) -> dict[str, Param]:
        bias, table = self.config.attention_bias, self.norms(name)
        for part, head in (("query", "N"), ("key", "K"), ("value", "K")):
            table |= self.linear(f"{name}/{part}", f"LD{head}H", None if bias == "none" else f"L{head}H")
        if qk_norm != "none":
            is_one = qk_norm == "head"
            for part, head in (("query", "N"), ("key", "K")):
                table |= self.norm(f"{name}/{part}_norm", "LH" if is_one else f"L{head}H", "rms")
        output = self.linear(f"{name}/output", "LNHD", "LD" if bias == "all" else None, self.residual_std)
        return table | output

    def mlp(self) -> dict[str, Param]:
        inner, outer = ("LF", "LD") if self.config.mlp_bias else (None, None)
        table = {} if self.config.shared_norm else self.norms("mlp")
        for part in ("gate", "up") if self.config.mlp in GATED else ("up",):
            table |= self.linear(f"mlp/{part}", "LDF", inner)
        return table | self.linear("mlp/down", "LFD", outer, self.residual_std)

    def experts(self) -> dict[str, Param]:
        table = self.norms("mlp") | self.linear("mlp/router", "LDJ", None)
        for part in ("gate", "up"):
            table |= self.linear(f"mlp/{part}", "LEDM", None)
        return table | self.linear("mlp/down", "LEMD", None, self.residual_std)

    def heads(self) -> dict[str, Param]:
        """What reads final hidden states."""
        config, table = self.config, dict[str, Param]()
        if config.head_transform:
            table |= self.linear("head/transform", "DW", "W") | self.norm("head/norm", "D", "layer")
        if not config.tied_embeddings:
            table["head/kernel"] = self.leaf("DV", self.std)
        if config.head_bias:
            table["head/bias"] = self.leaf("V")
        if config.pooler:
            table |= self.linear("pooler", "DW", "W")
        return table | (self.linear("classifier", "DZ", "Z") if config.labels else {})


def group(table: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under `prefix/`, without it."""
    return {path[len(prefix) + 1 :]: leaf for path, leaf in table.items() if path.startswith(prefix + "/")}


def windowed(config: TransformerConfig, layers: int) -> list[bool]:
    """Which layers have a window."""
    every = config.global_every
    return [bool(config.sliding_window and (not every or (i + 1) % every)) for i in range(layers)]
