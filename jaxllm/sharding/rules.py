"""From logical axes to mesh axes: the one table, and the specs that follow from it."""

import functools
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

REPLICAS = frozenset({"data", "fsdp"})
"""The axes over which a parameter is the same where it is used, and its gradient a sum."""


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


def gather_at_use(table: dict[str, Param]) -> Callable[[str, Tree], Tree]:
    """The `at_use` of a model whose parameters are cut by `param_specs`.

    Undoes the `fsdp` cut and keeps the `tensor` cut. The gradient of what was gathered is scattered again where it is
    made: summed over `fsdp` by a reduce-scatter, and what is left of it over `data` by an all-reduce. What is gathered
    already stays as it is.
    """

    def gather(group: str, params: Tree) -> Tree:
        def leaf(path: str, x: jax.Array) -> jax.Array:
            axes = spec(table[f"{group}/{path}"].axes)
            cut = P(*axes[len(axes) - x.ndim :])  # inside the scan a leaf of `layers` has lost its leading axis
            is_whole = "fsdp" not in cut or jax.typeof(x).sharding.spec.reduced
            return x if is_whole else _gathered(cut, x)

        return map_with_path(leaf, params)

    return gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(cut: P, x: jax.Array) -> jax.Array:
    whole = (None if axis == "fsdp" else axis for axis in cut)
    return jax.sharding.reshard(x, P(*whole, reduced=REPLICAS))


def _gathered_forward(cut: P, x: jax.Array) -> tuple[jax.Array, None]:
    return _gathered(cut, x), None


def _scattered(cut: P, _: None, unsummed: jax.Array) -> tuple[jax.Array]:
    """The cotangent of a gathered parameter, cut like it.

    The sums are written down: the partitioner would make of `reshard` an all-reduce and a slice, twice the traffic.
    """
    if jax.sharding.get_abstract_mesh().shape["fsdp"] == 1:
        return (jax.sharding.reshard(unsummed, cut),)
    dimension = list(cut).index("fsdp")

    scatter = functools.partial(jax.lax.psum_scatter, axis_name="fsdp", scatter_dimension=dimension, tiled=True)
    rest = P(*cut, unreduced={"data"})
    return (jax.sharding.reshard(jax.shard_map(scatter, out_specs=rest)(unsummed), cut),)


_gathered.defvjp(_gathered_forward, _scattered)
