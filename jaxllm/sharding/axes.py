"""The table from logical axes to mesh axes. Nothing here imports jax."""

import math
from collections.abc import Mapping

from jaxllm.common.axes import Axes
from jaxllm.models.table import Param

RULES: dict[str, str | None] = {
    "L": None,
    "D": "fsdp",
    "V": "tensor",
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "E": "tensor",
    "H": None,
    "J": None,
    "M": None,
    "P": None,
    "Q": None,
    "R": None,
    "U": None,
    "W": None,
    "Y": None,
    "Z": None,
}
"""Each logical axis of a parameter and the mesh axis that cuts it."""

Cut = tuple[str, ...]
"""The mesh axes that cut one dimension, the outermost first."""


def cuts(axes: Axes, rules: dict[str, str | None] = RULES) -> tuple[Cut, ...]:
    """What cuts each dimension of a parameter with these logical axes, on every mesh.

    Vectors (norms, biases) are not cut along `fsdp`: they weigh nothing, and gathering each would cost a message.

    Raises:
        ValueError: a letter without a rule, or two letters on one mesh axis.
    """
    unknown = [a for a in axes if a not in rules]
    if unknown:
        raise ValueError(f"no rule for the logical axes {unknown} of {axes}; known are {list(rules)}")
    is_vector = set(axes) <= set("LDWJZ")
    found = [None if is_vector else rules[a] for a in axes]
    used = [axis for axis in found if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} put two dimensions on one mesh axis: {found}")
    return tuple(() if axis is None else (axis,) for axis in found)


def cuts_on(sizes: Mapping[str, int], leaf: Param) -> tuple[Cut, ...]:
    """What cuts each dimension of a parameter on a mesh of these sizes. Raises as `cuts` does.

    What the rules say; and of an adapter the factors and learned keys that lack the width are cut along `fsdp` too, as
    the other factor is, by their longest dimension that it divides beside the layers. Where it divides none they are
    whole along it.
    """
    found = cuts(leaf.axes)
    is_added = len(leaf.axes) > 2 and not {"Q", "U"}.isdisjoint(leaf.axes)
    if not is_added or ("fsdp",) in found:
        return found
    parts = [size / math.prod(sizes[axis] for axis in by) for size, by in zip(leaf.shape, found, strict=True)]
    fitting = [i for i, part in enumerate(parts) if leaf.axes[i] != "L" and part % sizes["fsdp"] == 0]
    if not fitting:
        return found
    longest = max(fitting, key=lambda i: (parts[i], i))
    return tuple((*by, "fsdp") if i == longest else by for i, by in enumerate(found))
