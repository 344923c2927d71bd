"""The parameter table: shape, logical axes and initial spread of every leaf.

Initialisation, sharding, counts, memory and weight decay all follow from it. Nothing here imports jax.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxllm.common.axes import LEGEND, Axes
from jaxllm.config import GATED, TransformerConfig


@dataclass(frozen=True)
class Param:
    """One leaf."""

    shape: tuple[int, ...]
    axes: Axes
    """A letter of `common/axes.py` for each dimension."""
    std: float
    """Standard deviation of the normal it starts from; 0 starts at `start`."""
    start: float = 0.0
    """The constant that it starts at when `std` is 0."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """A linear map of a block or the head: what weight decay and Muon apply to."""
        return self.std > 0 and "V" not in self.axes[:1] and "P" not in self.axes


def decoder_table(config: TransformerConfig) -> dict[str, Param]:
    """`{path: Param}` of a decoder-only transformer. Leaves under `layers/` lead with the layer axis.

    Matrices start from N(0, `init_std`); those that write into the residual stream (`output`, `down`) from
    N(0, `init_std` / sqrt(2 layers)), so that the stream's variance does not grow with depth (GPT-2). Norm
    scales start at 1 and biases at 0.
    """
    sizes = {letter: getattr(config, field) for letter, field in LEGEND.items()}

    def leaf(axes: str, std: float = 0.0, start: float = 0.0) -> Param:
        return Param(tuple(sizes[a] for a in axes), tuple(axes), std, start)

    std = config.init_std
    residual_std = std / math.sqrt(2 * config.layers)
    table = {"embedding/tokens": leaf("VD", std)}
    if config.positions == "learned":
        table["embedding/positions"] = leaf("PD", std)

    def norm(path: str, axes: str) -> None:
        table[f"{path}/scale"] = leaf(axes, start=1.0)
        if config.norm == "layer":
            table[f"{path}/bias"] = leaf(axes)

    def linear(path: str, inputs: str, outputs: str, spread: float, bias: bool) -> None:
        table[f"{path}/kernel"] = leaf("L" + inputs + outputs, spread)
        if bias:
            table[f"{path}/bias"] = leaf("L" + outputs)

    norm("layers/attention_norm", "LD")
    for name, heads in (("query", "N"), ("key", "K"), ("value", "K")):
        linear(f"layers/attention/{name}", "D", heads + "H", std, config.attention_bias)
    if config.qk_norm:
        table["layers/attention/query_norm/scale"] = leaf("LH", start=1.0)
        table["layers/attention/key_norm/scale"] = leaf("LH", start=1.0)
    linear("layers/attention/output", "NH", "D", residual_std, config.attention_bias)
    norm("layers/mlp_norm", "LD")
    if config.mlp in GATED:
        linear("layers/mlp/gate", "D", "F", std, config.mlp_bias)
    linear("layers/mlp/up", "D", "F", std, config.mlp_bias)
    linear("layers/mlp/down", "F", "D", residual_std, config.mlp_bias)
    norm("final_norm", "D")
    if not config.tied_embeddings:
        table["head/kernel"] = leaf("DV", std)
    return table


def group(table: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under `prefix/`, without it."""
    return {path[len(prefix) + 1 :]: leaf for path, leaf in table.items() if path.startswith(prefix + "/")}
