"""From logical axes to mesh axes: the one table, and the specs that follow from it."""

from jax.sharding import PartitionSpec as P

from jaxllm.common.axes import Axes
from jaxllm.common.trees import Tree, nest
from jaxllm.models.table import Param

RULES: dict[str, str | None] = {
    "L": None,
    "D": "fsdp",
    "V": "tensor",
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "H": None,
    "P": None,
}
"""Each logical axis of a parameter and the mesh axis that cuts it."""

BATCH = P(("data", "fsdp"))
"""How the rows of a batch are cut."""


REPLICAS = frozenset({"data", "fsdp"})
"""The axes along which a parameter is the same where it is used, and its gradient a sum."""


def spec(axes: Axes) -> P:
    """The partition of a parameter with these logical axes.

    Vectors (norms, biases) are not cut along `fsdp`: they weigh nothing, and gathering each would cost a message.

    Raises:
        ValueError: a letter without a rule, or two letters on one mesh axis.
    """
    unknown = [a for a in axes if a not in RULES]
    if unknown:
        raise ValueError(f"no rule for the logical axes {unknown} of {axes}; known are {list(RULES)}")
    is_vector = set(axes) <= {"L", "D"}
    mesh_axes = [None if is_vector else RULES[a] for a in axes]
    used = [m for m in mesh_axes if m is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} put two dimensions on one mesh axis: {mesh_axes}")
    return P(*mesh_axes)


def param_specs(table: dict[str, Param]) -> Tree:
    """The spec of every parameter, as a nested dict like the parameters."""
    return nest({path: spec(leaf.axes) for path, leaf in table.items()})
