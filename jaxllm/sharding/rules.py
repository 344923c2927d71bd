"""How arrays are partitioned: parameters by the table of `sharding/axes.py`, batches by one spec."""

from jax.sharding import PartitionSpec as P

from jaxllm.common.axes import Axes
from jaxllm.common.trees import Tree, nest
from jaxllm.models.table import Param
from jaxllm.sharding.axes import cuts

BATCH = P(("data", "fsdp"), "sequence")
"""How the rows and the tokens of a batch are cut."""


REPLICAS = frozenset({"data", "fsdp", "sequence"})
"""The axes along which a parameter is the same where it is used, and its gradient a sum."""


def spec(axes: Axes) -> P:
    """The partition of a parameter with these logical axes. Raises as `cuts` does."""
    return P(*cuts(axes))


def param_specs(table: dict[str, Param]) -> Tree:
    """The spec of every parameter, as a nested dict like the parameters."""
    return nest({path: spec(leaf.axes) for path, leaf in table.items()})
