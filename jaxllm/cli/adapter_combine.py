"""What `jaxllm adapter combine` adds up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllm.cli.adapter_runs import Adapter
from jaxllm.common.paths import user_path
from jaxllm.config import TuningConfig, UserError
from jaxllm.models.adapters import TAKES_PLACES, linear_modules


class Sum(NamedTuple):
    """Of several adapters."""

    tuning: TuningConfig
    leaves: Mapping[str, np.ndarray]
    told: str
    """What there is to say of it."""


def weighed(text: str, default: float) -> tuple[Path, float]:
    """A run folder and its weight, of RUN or RUN:WEIGHT.

    Raises:
        UserError: a weight that is not finite.
    """
    folder, colon, number = text.rpartition(":")
    if not colon or user_path(text).exists():
        return user_path(text), default
    try:
        weight = float(number)
    except ValueError:
        return user_path(text), default
    if not math.isfinite(weight):
        raise UserError(f"'{text}': the weight must be a number, such as 0.5")
    return user_path(folder), weight


def combined(weights: Sequence[float], adapters: Sequence[Adapter], rank: int | None) -> Sum:
    """The sum of low-rank updates, or the mean of virtual tokens.

    Args:
        weights: one for each adapter.
        adapters: of one base.
        rank: the largest of the result; none is as large as it takes.

    Raises:
        UserError: adapters of different bases or kinds, or of a kind that has no sum.
    """
    first = adapters[0]
    for adapter in adapters:
        _check_has_sum(adapter)
        _check_is_like(first, adapter)
    if first.config.tuning.method not in TAKES_PLACES:
        return _summed(weights, adapters, rank)
    if rank is not None:
        raise UserError(f"--rank {rank}: virtual tokens have no rank")
    if not sum(weights):
        raise UserError("the weights of virtual tokens, which are averaged by them, must not add up to 0")
    leaves = {
        path: np.average([adapter.leaves[path] for adapter in adapters], axis=0, weights=weights).astype(np.float32)
        for path in first.leaves
    }
    tuning = replace(first.config.tuning, prompt=replace(first.config.tuning.prompt, start="uniform", labels=()))
    return Sum(tuning, leaves, f"the mean of {tuning.prompt.length} virtual tokens")


def _check_has_sum(adapter: Adapter) -> None:
    tuning = adapter.config.tuning
    if tuning.lora.magnitudes:
        raise UserError(
            f"'{adapter.folder}' has magnitudes (DoRA), which cannot be added; `jaxllm adapter merge` makes one model "
            "of it and its base"
        )
    if tuning.method == "hybrid" or tuning.also:
        what = "gates" if tuning.method == "hybrid" else f"parameters of the base (tuning.also = {tuning.also!r})"
        raise UserError(f"'{adapter.folder}' has trained {what}, which cannot be added")
    if adapter.origin is None:
        raise UserError(f"'{adapter.folder}' has no base.json, which says what its base was")


def _check_is_like(first: Adapter, other: Adapter) -> None:
    names = f"'{first.folder}' and '{other.folder}'"
    one, two = first.origin, other.origin
    assert one is not None
    assert two is not None
    bases = first.config.base, other.config.base
    if one.fingerprint != two.fingerprint or (not one.fingerprint and bases[0] != bases[1]):
        raise UserError(
            f"{names} are adapters for different bases: '{bases[0]}' with the fingerprint {one.fingerprint}, and "
            f"'{bases[1]}' with {two.fingerprint}"
        )
    kinds = [adapter.config.tuning.method.removeprefix("ada") for adapter in (first, other)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{names} are of two kinds, {' and '.join(kinds)}: only adapters of one kind can be added")
    lengths = [adapter.config.tuning.prompt.length for adapter in (first, other)]
    if kinds[0] != "lora" and lengths[0] != lengths[1]:
        raise UserError(f"{names} have {lengths[0]} and {lengths[1]} virtual tokens: both must have as many")


def _summed(weights: Sequence[float], adapters: Sequence[Adapter], rank: int | None) -> Sum:
    from jaxllm.peft.low_rank import added, at_most, factors_of, fitting, leaves_of, norm, tuning_of

    model, dropout = adapters[0].config.model, adapters[0].config.tuning.lora.dropout
    parts = [(w, factors_of(adapter.config, adapter.leaves)) for w, adapter in zip(weights, adapters, strict=True)]
    there = [module for module in linear_modules(model) if any(module in own for _, own in parts)]
    found = {module: added([(w, own[module]) for w, own in parts if module in own]) for module in there}
    found, told = fitting(model, found), ""
    if rank is not None:
        whole = math.hypot(*map(norm, found.values()))
        lower = {module: at_most(factors, rank) for module, factors in found.items()}
        lost = math.hypot(*(float(np.linalg.norm(values)) for _, values in lower.values()))
        found = {module: factors for module, (factors, _) in lower.items()}
        told = f", with a relative error of {lost / (whole or 1):.2%}"
    ranks = max(factors.rank for factors in found.values())
    return Sum(tuning_of(model, found, dropout=dropout), leaves_of(model, found), f"ranks up to {ranks}{told}")
