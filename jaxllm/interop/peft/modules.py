"""Their linear modules, by the key map of a family, and how updates of those are cut into updates of our kernels.

One module of theirs may hold several kernels of ours, as GPT-2's `c_attn` does: all of them then read the same A, and
each has its own rows of B.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from jaxllm.config import TransformerConfig
from jaxllm.interop.families import Family
from jaxllm.interop.rules import Rule, named
from jaxllm.models.adapters import linear_modules
from jaxllm.models.table import Param, parameter_table

WEIGHT = ".weight"


class Module(NamedTuple):
    """One linear map of theirs."""

    name: str
    """Such as `model.layers.0.self_attn.q_proj`."""
    template: str
    """The same of all layers, with `{L}` in the place of the number."""
    layer: int
    ours: tuple[str, ...]
    """Whose kernels it holds, such as `layers/attention/query`; empty where none can have an update."""
    axes: "Axes | None"


class Axes(NamedTuple):
    """How the rows and columns of their matrix are made of our axes, in the notation of einops."""

    read: str
    """Of what the module reads, in their order, such as `(N H)`."""
    written: str
    """The same of what it writes, where S counts kernels."""
    own_read: str
    """In our order, without parentheses."""
    own_written: str
    sizes: dict[str, int]
    has_inputs_first: bool
    """Their matrix has inputs as rows, as only GPT-2's have."""

    def size(self, group: str) -> int:
        """Of one of the four, such as `(N H)`."""
        return int(np.prod([self.sizes[letter] for letter in re.findall(r"[A-Z]", group)]))

    def read_a(self, a_QI: np.ndarray) -> np.ndarray:
        """`[I, Q]` of ours."""
        return rearrange(a_QI, f"Q {self.read} -> ({self.own_read}) Q", **self._of(self.read))

    def write_a(self, a_IQ: np.ndarray) -> np.ndarray:
        """The inverse of `read_a`."""
        return rearrange(a_IQ, f"({self.own_read}) Q -> Q {self.read}", **self._of(self.read))

    def read_b(self, b_OQ: np.ndarray) -> np.ndarray:
        """`[S, Q, O]` of our kernels."""
        return rearrange(b_OQ, f"{self.written} Q -> {self._several} Q ({self.own_written})", **self._of(self.written))

    def write_b(self, b_SQO: np.ndarray) -> np.ndarray:
        """The inverse of `read_b`."""
        return rearrange(b_SQO, f"{self._several} Q ({self.own_written}) -> {self.written} Q", **self._of(self.written))

    @property
    def _several(self) -> str:
        return "S" if "S" in self.written else "1"

    def _of(self, group: str) -> dict[str, int]:
        return {letter: self.sizes[letter] for letter in re.findall(r"[A-Z]", group)}


def without_prefix(modules: Mapping[str, Module], prefix: str) -> dict[str, Module]:
    """The same modules by the names that they have in a model without a head, which leaves out the prefix."""
    bare = {name.removeprefix(prefix): module for name, module in modules.items()}
    return {name: m._replace(name=name, template=m.template.removeprefix(prefix)) for name, m in bare.items()}


def modules_of(family: Family, model: TransformerConfig) -> dict[str, Module]:
    """All linear maps that a model of this family has, by their names, in the order of the key map."""
    table, can_change = parameter_table(model), linear_modules(model)
    axes: dict[str, Axes] = {}
    found = {}
    for tensor in named(family.rules(model), table):
        paths = tensor.rule.paths
        if not tensor.name.endswith(WEIGHT) or not all(path.endswith("/kernel") for path in paths):
            continue
        ours = tuple(path.removesuffix("/kernel") for path in paths)
        name, template = tensor.name.removesuffix(WEIGHT), tensor.rule.theirs.removesuffix(WEIGHT)
        if all(module in can_change for module in ours):
            [layer] = tensor.place
            if template not in axes:
                axes[template] = _axes(tensor.rule, table)
            found[name] = Module(name, template, layer, ours, axes[template])
        else:
            found[name] = Module(name, template, 0, (), None)
    return found


def _axes(rule: Rule, table: Mapping[str, Param]) -> Axes:
    leaf = table[rule.paths[0]]
    own_read, own_written = leaf.axes[1 : 1 + leaf.reads], leaf.axes[1 + leaf.reads :]
    first, second = re.findall(r"\([^)]*\)|\w", rule.axes)
    has_inputs_first = set(re.findall(r"[A-Z]", first)) == set(own_read)
    read, written = (first, second) if has_inputs_first else (second, first)
    sizes = dict(zip(leaf.axes, leaf.shape, strict=True)) | {"S": len(rule.paths)}
    return Axes(read, written, " ".join(own_read), " ".join(own_written), sizes, has_inputs_first)


def shortest(targeted: Sequence[Module], modules: Mapping[str, Module]) -> list[str]:
    """What to call these modules in a list of targets, each of which stands for all whose names end with it.

    `q_proj` where that means no other module too; the names of every layer where no part without a number does.
    """
    wanted, found = {module.name for module in targeted}, dict[str, None]()
    others = [name for name in modules if name not in wanted]
    endings = {module.template: _ending(module.template, others) for module in targeted}
    for module in targeted:
        found[endings[module.template] or module.name] = None
    return list(found)


def _ending(template: str, others: Sequence[str]) -> str | None:
    """The shortest end of a name of every layer that none of the others has."""
    parts = template.rpartition("{L}.")[2].split(".")
    for start in reversed(range(len(parts))):
        ending = ".".join(parts[start:])
        if not any(is_meant(ending, name) for name in others):
            return ending
    return None


def is_meant(target: str, name: str) -> bool:
    """Whether an entry of a list of targets stands for a module."""
    return name == target or name.endswith(f".{target}")
