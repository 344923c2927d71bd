"""Key maps: which of others' tensors hold which of our parameters, with their axes in which order.

    Rule("model.layers.{L}.self_attn.q_proj.weight", "(N H) D", "layers/attention/query/kernel")

says that their matrix of layer L has the axes of ours, `D N H`, as rows of `N H` and columns of `D`. The letters are
those of `common/axes.py`, in the notation of einops, so that one line is both directions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from jaxllm.config import TransformerConfig
from jaxllm.models.table import Param

PLACES = "LE"
"""Leading axes of our parameters that in others' names are numbers, one tensor for each."""


STRIP = 16
"""Columns that are copied together."""


class Rule(NamedTuple):
    """One name of theirs, or one for each layer (and expert)."""

    theirs: str
    """With `{L}` and `{E}` where numbers stand."""
    axes: str
    """Of their tensor. Where it holds several of our parameters, S counts them."""
    ours: str
    """The path, or several with spaces between."""
    own_axes: str = ""
    """Of our parameter without its places, where they are not those of the table."""

    @property
    def paths(self) -> list[str]:
        """Of our parameters."""
        return self.ours.split()


class Named(NamedTuple):
    """One tensor of theirs: what it is called, how large it is, and which entries of our parameters it holds."""

    name: str
    shape: tuple[int, ...]
    rule: Rule
    place: tuple[int, ...]
    """Indices into the leading axes of our parameters."""


def named(rules: Sequence[Rule], table: Mapping[str, Param]) -> Iterator[Named]:
    """Every tensor that a model with this table has, in the order of the rules."""
    for rule in rules:
        leaf = table[rule.paths[0]]
        places = _places(rule, leaf)
        sizes = _sizes(rule, leaf)
        shape = tuple(
            int(np.prod([sizes[letter] if letter in sizes else int(letter) for letter in group.split()]))
            for group in _groups(rule.axes)
        )
        for place in product(*(range(size) for size in leaf.shape[: len(places)])):
            name = rule.theirs.format(**dict(zip(places, place, strict=True)))
            yield Named(name, shape, rule, place)


def misfits(rules: Sequence[Rule], table: Mapping[str, Param]) -> set[str]:
    """Paths that only the table or only the rules have, or whose axes differ; a key map fits when there are none."""
    paths = {path for rule in rules for path in rule.paths}
    first = {rule.paths[0]: _letters(rule) for rule in rules}
    strange = {path for path, letters in first.items() if path in table and not letters <= set(table[path].axes)}
    return strange | (set(table) ^ paths)


def _letters(rule: Rule) -> set[str]:
    """Of our axes."""
    numbered = {letter for letter in PLACES if f"{{{letter}}}" in rule.theirs}
    return numbered | set(re.findall(r"[A-Z]", rule.own_axes or rule.axes)) - {"S"}


def split(rule: Rule, table: Mapping[str, Param], tensor: np.ndarray) -> list[np.ndarray]:
    """Our parameters at one place, of one of their tensors: views of it."""
    own, sizes = _own_axes(rule, table)
    if len(rule.paths) == 1:
        return [rearrange(tensor, f"{rule.axes} -> {own}", **sizes)]
    return list(rearrange(tensor, f"{rule.axes} -> S {own}", **sizes))


def join(rule: Rule, table: Mapping[str, Param], leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split`, contiguous."""
    own, sizes = _own_axes(rule, table)
    both = leaves[0] if len(rule.paths) == 1 else np.stack(leaves)
    several = "" if len(rule.paths) == 1 else "S "
    return contiguous(rearrange(both, f"{several}{own} -> {rule.axes}", **sizes))


def contiguous(view: np.ndarray) -> np.ndarray:
    """The same in one run of memory. A transposed matrix is copied in strips of a cache line, 6 times as fast."""
    if view.ndim < 2 or view.strides[-1] == view.itemsize:
        return np.ascontiguousarray(view)
    copy = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[-1], STRIP):
        copy[..., start : start + STRIP] = view[..., start : start + STRIP]
    return copy


def _own_axes(rule: Rule, table: Mapping[str, Param]) -> tuple[str, dict[str, int]]:
    leaf = table[rule.paths[0]]
    plain = " ".join(leaf.axes[len(_places(rule, leaf)) :])
    needed = set(re.findall(r"[A-Za-z]+", rule.axes))
    return rule.own_axes or plain, {letter: size for letter, size in _sizes(rule, leaf).items() if letter in needed}


def _places(rule: Rule, leaf: Param) -> str:
    """The letters of the numbers in their names, which lead our axes."""
    found = "".join(letter for letter in PLACES if f"{{{letter}}}" in rule.theirs)
    assert "".join(leaf.axes).startswith(found), f"{rule.theirs} numbers {found}, and {rule.ours} has {leaf.axes}"
    return found


def _sizes(rule: Rule, leaf: Param) -> dict[str, int]:
    several = {"S": len(rule.paths)} if len(rule.paths) > 1 else {}
    return {**dict(zip(leaf.axes, leaf.shape, strict=True)), **several}


def _groups(axes: str) -> list[str]:
    """`(N H) D` as `N H` and `D`: the letters of each of their axes."""
    return [inner or letter for inner, letter in re.findall(r"\(([^)]*)\)|(\w+)", axes)]


def fields(config: TransformerConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """Values under their names, of fields that mean the same."""
    return {theirs: getattr(config, ours) for theirs, ours in names.items()}
