"""The table from logical axes to mesh axes. Nothing here imports jax."""

from jaxllm.common.axes import Axes

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


def cuts(axes: Axes, rules: dict[str, str | None] = RULES) -> tuple[str | None, ...]:
    """The mesh axis that cuts each dimension of a parameter with these logical axes.

    Vectors (norms, biases) are not cut along `fsdp`: they weigh nothing, and gathering each would cost a message.

    Raises:
        ValueError: a letter without a rule, or two letters on one mesh axis.
    """
    unknown = [a for a in axes if a not in rules]
    if unknown:
        raise ValueError(f"no rule for the logical axes {unknown} of {axes}; known are {list(rules)}")
    is_vector = set(axes) <= set("LDWJZ")
    found = tuple(None if is_vector else rules[a] for a in axes)
    used = [axis for axis in found if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} put two dimensions on one mesh axis: {list(found)}")
    return found
