"""How arrays are partitioned: parameters by the table of `sharding/axes.py`, batches by one spec."""

from collections.abc import Mapping

from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree, nest
from jaxllm.models.table import Param
from jaxllm.sharding.axes import Cut, cuts_on

BATCH = P(("data", "fsdp"), "sequence")
"""How the rows and the tokens of a batch are cut."""


REPLICAS = frozenset({"data", "fsdp", "sequence"})
"""The axes along which a parameter is the same where it is used, and its gradient a sum."""


def spec(sizes: Mapping[str, int], leaf: Param) -> P:
    """The partition of a parameter on a mesh of these sizes (`mesh.shape`). Raises as `cuts` does."""
    return P(*cuts_on(sizes, leaf))


def table_specs(sizes: Mapping[str, int], table: dict[str, Param]) -> Tree:
    """The spec of every parameter, as a nested dict like the parameters."""
    return nest({path: spec(sizes, leaf) for path, leaf in table.items()})


def fsdp_dimension(axes: P) -> int | None:
    """The dimension that is cut along `fsdp`, if there is one."""
    return next((i for i, by in enumerate(axes) if "fsdp" in _cut(by)), None)


def without_fsdp(axes: P) -> P:
    """The same partition, whole along `fsdp`."""
    return P(*(tuple(axis for axis in _cut(by) if axis != "fsdp") for by in axes))


def _cut(by: str | Cut | None) -> Cut:
    if by is None:
        return ()
    return (by,) if isinstance(by, str) else by
