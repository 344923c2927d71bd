"""Low-rank updates as factors outside of training: added up, brought to another rank, and said as a tuning again."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.common.trees import Tree, flatten
from jaxllm.config import LoraConfig, RankConfig, RunConfig, TransformerConfig, TuningConfig
from jaxllm.models.adapters import PRESETS, linear_modules, updates
from jaxllm.models.table import Param


class Factors(NamedTuple):
    """The update of one module, all of whose layers' kernels change by scale * A B. In float32, on the host."""

    a_LIQ: np.ndarray
    b_LQO: np.ndarray
    scale: float
    magnitude_LO: np.ndarray | None = None
    """DoRA's."""

    @property
    def rank(self) -> int:
        """Of the layer that has most."""
        return self.a_LIQ.shape[-1]


def factors_of(config: RunConfig, trained: Tree) -> dict[str, Factors]:
    """Those that a run has trained, by their modules.

    AdaLoRA's diagonal is a part of B; of a rank that was taken A is 0 too, as is that of one that a layer lacks.
    """
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(trained).items()}
    found = {}
    for update in updates(config.model, config.tuning):
        L, module = update.kernel.shape[0], update.module
        a_LIQ = flat[f"{module}/lora_a"].reshape(L, update.inputs, update.rank)
        b_LQO = flat[f"{module}/lora_b"].reshape(L, update.rank, update.outputs)
        if (diagonal_LQ := flat.get(f"{module}/lora_e")) is not None:
            a_LIQ, b_LQO = a_LIQ * (diagonal_LQ != 0)[:, None], b_LQO * diagonal_LQ[..., None]
        magnitude = flat.get(f"{module}/lora_magnitude")
        magnitude_LO = None if magnitude is None else magnitude.reshape(L, update.outputs)
        found[module] = Factors(a_LIQ, b_LQO, update.scale, magnitude_LO)
    return found


def leaves_of(model: TransformerConfig, found: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    """The leaves of an adapter by their paths: the inverse of `factors_of`."""
    table, leaves = linear_modules(model), {}
    for module, factors in found.items():
        (L, *shape), reads, Q = table[module].shape, table[module].reads, factors.rank
        leaves[f"{module}/lora_a"] = factors.a_LIQ.reshape(L, *shape[:reads], Q)
        leaves[f"{module}/lora_b"] = factors.b_LQO.reshape(L, Q, *shape[reads:])
        if factors.magnitude_LO is not None:
            leaves[f"{module}/lora_magnitude"] = factors.magnitude_LO.reshape(L, *shape[reads:])
    return leaves


def tuning_of(
    model: TransformerConfig, found: Mapping[str, Factors], rank_stabilised: bool = False, dropout: float = 0.0
) -> TuningConfig:
    """The tuning whose updates are these; modules of the commonest rank and scale are the rule, others exceptions."""
    kinds: dict[tuple[int, float], list[str]] = {}
    for module, factors in found.items():
        kinds.setdefault((factors.rank, alpha_of(factors.scale, factors.rank, rank_stabilised)), []).append(module)
    [((rank, alpha), _)] = Counter({kind: len(modules) for kind, modules in kinds.items()}).most_common(1)
    others = tuple(
        RankConfig(targets=_regex(modules), rank=kind[0], alpha=kind[1])
        for kind, modules in kinds.items()
        if kind != (rank, alpha)
    )
    lora = LoraConfig(
        targets=_targets(model, found),
        rank=rank,
        alpha=alpha,
        rank_stabilised=rank_stabilised,
        dropout=dropout,
        ranks=others,
        magnitudes=any(factors.magnitude_LO is not None for factors in found.values()),
    )
    return TuningConfig(method="lora", lora=lora)


def alpha_of(scale: float, rank: int, rank_stabilised: bool) -> float:
    """The alpha that gives a scale, without the last digits, which rounding leaves and float32 does not see."""
    return float(f"{scale * (rank**0.5 if rank_stabilised else rank):.12g}")


def _targets(model: TransformerConfig, modules: Iterable[str]) -> tuple[str, ...]:
    """A preset, if it is just these modules."""
    wanted = set(modules)
    for name, pattern in PRESETS.items():
        if {module for module in linear_modules(model) if re.search(pattern, module)} == wanted:
            return (name,)
    return tuple(_regex([module]) for module in modules)


def _regex(modules: Sequence[str]) -> str:
    return f"^({'|'.join(modules)})$" if len(modules) > 1 else f"^{modules[0]}$"


def added(weighed: Sequence[tuple[float, Factors]]) -> Factors:
    """One update whose change is the sum of those of several, each times its weight; of as many ranks as they have."""
    a_LIQ = np.concatenate([factors.a_LIQ for _, factors in weighed], axis=-1)
    b_LQO = np.concatenate([factors.b_LQO * np.float32(w * factors.scale) for w, factors in weighed], axis=1)
    return Factors(a_LIQ, b_LQO, 1.0)


def fitting(model: TransformerConfig, found: Mapping[str, Factors]) -> dict[str, Factors]:
    """The same changes, with no module of more ranks than its kernel can have."""
    table = linear_modules(model)
    return {module: at_most(factors, limit(table[module]))[0] for module, factors in found.items()}


def limit(kernel: Param) -> int:
    """The rank that a change of a kernel `[L, *in, *out]` has at most."""
    shape, reads = kernel.shape[1:], kernel.reads
    return int(min(np.prod(shape[:reads]), np.prod(shape[reads:])))


def at_most(factors: Factors, rank: int) -> tuple[Factors, np.ndarray]:
    """An update of at most that rank whose change is nearest in the squares, by a singular value decomposition.

    Returns:
        It, and the singular values `[L, ...]` of the change that are lost.
    """
    if factors.rank <= rank:
        return factors, np.zeros((len(factors.a_LIQ), 0))
    # float64: the product of two triangular factors squares their condition.
    left, upper = np.linalg.qr(factors.a_LIQ.astype(np.float64))
    right, lower = np.linalg.qr(np.swapaxes(factors.b_LQO, 1, 2).astype(np.float64))
    u, s_LR, v = np.linalg.svd(upper @ np.swapaxes(lower, 1, 2), full_matrices=False)
    root = np.sqrt(s_LR[:, :rank])
    a_LIQ = (left @ u[..., :rank]) * root[:, None]
    b_LQO = root[..., None] * (v[:, :rank] @ np.swapaxes(right, 1, 2))
    kept = Factors(a_LIQ.astype(np.float32), b_LQO.astype(np.float32), factors.scale, factors.magnitude_LO)
    return kept, factors.scale * s_LR[:, rank:]


def norm(factors: Factors) -> float:
    """The root of the sum of the squares of the change of all layers."""
    a, b = factors.a_LIQ.astype(np.float64), factors.b_LQO.astype(np.float64)
    squares = np.sum((np.swapaxes(a, 1, 2) @ a) * (b @ np.swapaxes(b, 1, 2)))
    return float(abs(factors.scale) * np.sqrt(max(squares, 0.0)))
