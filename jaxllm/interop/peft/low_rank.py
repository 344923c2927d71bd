"""LoRA and AdaLoRA as PEFT has them: two matrices for each module of each layer, and our factors of all layers."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.config import TransformerConfig, TuningConfig, UserError
from jaxllm.interop.convert import is_bare
from jaxllm.interop.families import Family
from jaxllm.interop.peft.modules import Axes, Module, modules_of, shortest, without_prefix
from jaxllm.interop.peft.settings import Scale, is_target, patterns, scale_of
from jaxllm.interop.settings import Settings
from jaxllm.models.adapters import linear_modules
from jaxllm.peft.low_rank import Factors, alpha_of, fitting, leaves_of, tuning_of

ROOT = "base_model.model."

PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_A": "a",
    "lora_B": "b",
    "lora_E": "diagonal",
}
"""How names of tensors end; the last three are AdaLoRA's."""

PART_NAMES = {"a": "lora_A", "b": "lora_B", "diagonal": "lora_E", "magnitude": "lora_magnitude_vector"}

Norms = Callable[[str], np.ndarray]
"""Gives the norms `[L, O]` of the columns of a kernel of the base, which DoRA's magnitudes are without an update."""


class _Part(NamedTuple):
    """The update of one of our kernels in one layer."""

    a_IQ: np.ndarray
    b_QO: np.ndarray
    scale: float
    magnitude_O: np.ndarray | None


def read_low_rank(
    settings: Settings,
    tensors: Mapping[str, np.ndarray],
    family: Family,
    model: TransformerConfig,
    norms: Norms,
) -> tuple[TuningConfig, dict[str, np.ndarray]]:
    """What is tuned, and the leaves of the adapter by their paths.

    Layers whose ranks are fewer than others' have zeros in the place of what they lack.

    Args:
        settings: the adapter's.
        tensors: of its file, in float32.
        family: of its base.
        model: the base.
        norms: of the base; is called for DoRA.

    Raises:
        UserError: a tensor or a module that cannot be used, or of another size than the base's.
    """
    given = _by_module(settings, tensors)
    modules = modules_of(family, model)
    if not any(name.startswith(family.prefix) for name in given):
        modules = without_prefix(modules, family.prefix)
    _check_modules(settings, given, modules)
    parts: dict[str, dict[int, _Part]] = {}
    for name, own in given.items():
        for ours, part in _read(settings, modules[name], own):
            parts.setdefault(ours, {})[modules[name].layer] = part
    uses_dora = settings.flag("use_dora", False)
    order = [module for module in linear_modules(model) if module in parts]
    found = {module: _stacked(model, module, parts[module], norms if uses_dora else None) for module in order}
    found = fitting(model, found)
    dropout, is_stabilised = settings.number("lora_dropout", 0.0), settings.flag("use_rslora", False)
    return tuning_of(model, found, is_stabilised, dropout), leaves_of(model, found)


def _by_module(settings: Settings, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of each module by what they are, all that there should be."""
    given: dict[str, dict[str, np.ndarray]] = {}
    for tensor, array in tensors.items():
        ending = next((ending for ending in PARTS if tensor.endswith(f".{ending}")), None)
        if ending is None or not tensor.startswith(ROOT):
            raise UserError(
                f"{settings.where}: the tensor '{tensor}' beside it is no update of a linear map of a block; others, "
                "such as of an embedding or of the head, are not read"
            )
        given.setdefault(tensor.removeprefix(ROOT).removesuffix(f".{ending}"), {})[PARTS[ending]] = array
    if not given:
        raise UserError(f"{settings.where}: there is no update beside it")
    needed = {"a", "b"} | ({"diagonal"} if settings["peft_type"] == "ADALORA" else set())
    needed |= {"magnitude"} if settings.flag("use_dora", False) else set()
    for name, own in given.items():
        if set(own) != needed:
            wanted, there = (
                ", ".join(PART_NAMES[part] for part in PART_NAMES if part in s) for s in (needed, set(own))
            )
            raise UserError(f"{settings.where}: of '{name}' there is {there} beside it, and should be {wanted}")
    return given


def _check_modules(settings: Settings, given: Iterable[str], modules: Mapping[str, Module]) -> None:
    """
    Raises:
        UserError: a module that is not there, cannot be updated, or is no target; or a target without an update.
    """
    for name in given:
        if name not in modules:
            [near] = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
            raise UserError(
                f"{settings.where}: is an adapter for another base: it updates '{name}', which the model has not; the "
                f"nearest that it has is '{near}'"
            )
        if not modules[name].ours:
            raise UserError(
                f"{settings.where}: it updates '{name}'; only linear maps of blocks can be updated here, and not those "
                "of experts"
            )
        if not is_target(settings, name):
            raise UserError(f"{settings.where}: there is an update of '{name}' beside it, which is no target of it")
    if settings.get("target_modules") in (None, "all-linear"):
        return
    for name, module in modules.items():
        if module.ours and name not in given and is_target(settings, name):
            raise UserError(
                f"{settings.where}: is an adapter for another base, or not whole: there is no update of '{name}' "
                "beside it, which is a target of it"
            )


def _read(settings: Settings, module: Module, own: Mapping[str, np.ndarray]) -> Iterator[tuple[str, _Part]]:
    """The parts of one module's update that our kernels have."""
    axes, scale = module.axes, scale_of(settings, module.name)
    assert axes is not None
    _check_sizes(settings, module.name, axes, own, scale)
    a_QI, b_OQ = own["a"], own["b"]
    if "diagonal" in own:
        b_OQ = b_OQ * own["diagonal"].reshape(-1)
    b_SQO = axes.read_b(b_OQ)
    magnitude = own.get("magnitude")
    magnitudes = None if magnitude is None else axes.read_b(magnitude.reshape(-1, 1))[:, 0]
    for s, ours in enumerate(module.ours):
        yield ours, _Part(axes.read_a(a_QI), b_SQO[s], scale.factor, None if magnitudes is None else magnitudes[s])


def _check_sizes(settings: Settings, name: str, axes: Axes, own: Mapping[str, np.ndarray], scale: Scale) -> None:
    """
    Raises:
        UserError: a tensor of another shape than its rank and the base say.
    """
    inputs, outputs = axes.size(axes.read), axes.size(axes.written)
    # AdaLoRA takes ranks of each module, which its file says by the shapes alone.
    rank = scale.rank if settings["peft_type"] == "LORA" else own["diagonal"].size
    wanted = {"a": (rank, inputs), "b": (outputs, rank), "magnitude": (outputs,), "diagonal": (rank, 1)}
    for part, array in own.items():
        shape = (array.size,) if part == "magnitude" else array.shape  # older versions have an axis more
        if shape != wanted[part]:
            raise UserError(
                f"{settings.where}: is an adapter for another base, or of other ranks than it says: {PART_NAMES[part]} "
                f"of '{name}' has the shape {list(shape)}; {list(wanted[part])} would do, of {inputs} numbers that are "
                f"mapped to {outputs} by rank {rank}"
            )


def _stacked(model: TransformerConfig, module: str, parts: Mapping[int, _Part], norms: Norms | None) -> Factors:
    """All layers' updates of one kernel; what a layer lacks is 0."""
    kernel = linear_modules(model)[module]
    L, rank = kernel.shape[0], max(1, *(part.a_IQ.shape[-1] for part in parts.values()))
    [first, *_] = parts.values()
    a_LIQ = np.zeros((L, len(first.a_IQ), rank), np.float32)
    b_LQO = np.zeros((L, rank, first.b_QO.shape[-1]), np.float32)
    magnitude_LO = None if norms is None else np.array(norms(module), np.float32)
    for layer, part in parts.items():
        own = part.a_IQ.shape[-1]
        a_LIQ[layer, :, :own] = part.a_IQ
        b_LQO[layer, :own] = part.b_QO if part.scale == first.scale else part.b_QO * (part.scale / first.scale)
        if magnitude_LO is not None:
            magnitude_LO[layer] = part.magnitude_O
    return Factors(a_LIQ, b_LQO, first.scale, magnitude_LO)


def write_low_rank(
    found: Mapping[str, Factors], rank_stabilised: bool, family: Family, model: TransformerConfig, norms: Norms
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `adapter_config.json` must say, and the tensors, by their names.

    Ranks that a layer lacks, as it does those that AdaLoRA has taken, are left out, and a layer without any is no
    target.

    Args:
        found: our updates.
        rank_stabilised: how scales are said.
        family: of the base.
        model: the base.
        norms: of the base; is called for DoRA of a part of one of their modules.

    Raises:
        UserError: nothing is left to be written.
    """
    modules = modules_of(family, model)
    if is_bare(model):
        modules = without_prefix(modules, family.prefix)
    targeted, tensors = [], dict[str, np.ndarray]()
    ranks, alphas = dict[str, float](), dict[str, float]()
    for name, module in modules.items():
        update = _written(module, found, norms) if set(module.ours) & set(found) else None
        if update is None:
            continue
        assert module.axes is not None
        targeted.append(module)
        ranks[name] = rank = update.a_IQ.shape[-1]
        alphas[name] = _whole(alpha_of(update.scale, rank, rank_stabilised))
        tensors[f"{ROOT}{name}.lora_A.weight"] = module.axes.write_a(update.a_IQ)
        tensors[f"{ROOT}{name}.lora_B.weight"] = update.b_QO.T
        if update.magnitude_O is not None:
            tensors[f"{ROOT}{name}.lora_magnitude_vector"] = update.magnitude_O
    if not targeted:
        raise UserError("every update of this adapter is 0, and a file of none cannot be read: train it first")
    (rank, rank_pattern), (alpha, alpha_pattern) = patterns(ranks), patterns(alphas)
    values = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": shortest(targeted, modules),
        "fan_in_fan_out": any(module.axes is not None and module.axes.has_inputs_first for module in targeted),
        "use_rslora": rank_stabilised,
        "use_dora": any(factors.magnitude_LO is not None for factors in found.values()),
        "bias": "none",
    }
    return values, tensors


def _whole(alpha: float) -> float:
    """A whole number as one, which is how the library has them."""
    return int(alpha) if alpha.is_integer() else alpha


def _written(module: Module, found: Mapping[str, Factors], norms: Norms) -> _Part | None:
    """The update of one of their modules, with A in our order and B in theirs; none where nothing is left of it."""
    axes, layer = module.axes, module.layer
    assert axes is not None
    own = [_layer(found[ours], layer) if ours in found else None for ours in module.ours]
    there = [part for part in own if part is not None]
    has_ranks, uses_dora = any(part.a_IQ.shape[-1] for part in there), there[0].magnitude_O is not None
    if not has_ranks and not (uses_dora and _scales(module, own, norms)):
        return None
    scale, shared = there[0].scale, _shared(own)
    a_IQ = shared if shared is not None else np.concatenate([part.a_IQ for part in there], axis=1)
    if not has_ranks:
        a_IQ = np.zeros((len(a_IQ), 1), np.float32)
    b_SQO, start = np.zeros((len(own), a_IQ.shape[-1], axes.size(axes.own_written)), np.float32), 0
    for s, part in enumerate(own):
        if part is not None:
            rank = part.a_IQ.shape[-1]
            b_SQO[s, start : start + rank] = part.b_QO if part.scale == scale else part.b_QO * (part.scale / scale)
            start += rank if shared is None else 0
    magnitude = axes.write_b(_magnitudes(module, own, norms)[:, None])[:, 0] if uses_dora else None
    return _Part(a_IQ, axes.write_b(b_SQO).T, scale, magnitude)


def _magnitudes(module: Module, own: Sequence[_Part | None], norms: Norms) -> np.ndarray:
    """`[S, O]`: DoRA's of a module of theirs, which of a kernel without an update are its norms."""
    rows = [None if part is None else part.magnitude_O for part in own]
    return np.stack([norms(o)[module.layer] if x is None else x for o, x in zip(module.ours, rows, strict=True)])


def _scales(module: Module, own: Sequence[_Part | None], norms: Norms) -> bool:
    """Whether magnitudes are others than the norms of the base, so that without a rank they do something too."""
    of_base = np.stack([norms(ours)[module.layer] for ours in module.ours])
    return not np.allclose(_magnitudes(module, own, norms), of_base, rtol=1e-6, atol=0)


def _shared(own: Sequence[_Part | None]) -> np.ndarray | None:
    """The A that all kernels of a module of theirs have, as they do when it was read so."""
    first = own[0]
    if first is None or any(part is None or not np.array_equal(part.a_IQ, first.a_IQ) for part in own):
        return None
    return first.a_IQ


def _layer(factors: Factors, layer: int) -> _Part:
    """Of one layer the ranks that it has."""
    a_IQ, b_QO = factors.a_LIQ[layer], factors.b_LQO[layer]
    kept = a_IQ.any(axis=0) | b_QO.any(axis=1)
    magnitude = None if factors.magnitude_LO is None else factors.magnitude_LO[layer]
    return _Part(a_IQ[:, kept], b_QO[kept], factors.scale, magnitude)
