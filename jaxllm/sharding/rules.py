"""From logical axes to mesh axes: the one table, and the specs that follow from it."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from jaxllm.common.axes import Axes
from jaxllm.common.trees import Tree, map_with_path, nest
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


def spec(axes: Axes) -> P:
    """The partition of a parameter with these logical axes.

    Raises:
        ValueError: a letter without a rule, or two letters on one mesh axis.
    """
    unknown = [a for a in axes if a not in RULES]
    if unknown:
        raise ValueError(f"no rule for the logical axes {unknown} of {axes}; known are {list(RULES)}")
    mesh_axes = [RULES[a] for a in axes]
    used = [m for m in mesh_axes if m is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} put two dimensions on one mesh axis: {mesh_axes}")
    return P(*mesh_axes)


def param_specs(table: dict[str, Param]) -> Tree:
    """The spec of every parameter, as a nested dict like the parameters."""
    return nest({path: spec(leaf.axes) for path, leaf in table.items()})


def gather_at_use(table: dict[str, Param]) -> Callable[[str, Tree], Tree]:
    """The `at_use` of a model whose parameters are cut by `param_specs`.

    Undoes the `fsdp` cut and keeps the `tensor` cut. Its transpose scatters the gradients again.
    """

    def gather(group: str, params: Tree) -> Tree:
        def leaf(path: str, x: jax.Array) -> jax.Array:
            whole = spec(table[f"{group}/{path}"].axes)
            # Inside the scan a leaf of `layers` has lost its leading axis.
            kept = [None if axis == "fsdp" else axis for axis in whole[len(whole) - x.ndim :]]
            return jax.sharding.reshard(x, P(*kept))

        return map_with_path(leaf, params)

    return gather
