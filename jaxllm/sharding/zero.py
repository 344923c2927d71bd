"""ZeRO stages (1910.02054) as transforms of spec trees: what is cut along `fsdp`, and when gradients are summed.

    stage   parameters   gradients   optimizer state, moving average
    0       whole        whole       whole                             (DDP, 2006.15704)
    1       whole        whole       cut
    2       whole        cut         cut
    3       cut          cut         cut                               (FSDP, 2304.11277)

A gradient that is kept whole is summed once for all microbatches; one that is kept cut is scattered in each, layer by
layer. Along `data` every stage keeps replicas, between which sums come last: hybrid sharding.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.models.table import Param
from jaxllm.sharding.gather import Slice, scattered
from jaxllm.sharding.rules import REPLICAS, param_specs


def parameter_specs(table: dict[str, Param], stage: int) -> Tree:
    """How the parameters lie between steps."""
    return param_specs(table) if stage == 3 else _whole(param_specs(table))


def optimizer_specs(table: dict[str, Param], stage: int) -> Tree:
    """How the optimizer's moments and the moving average lie, and the slices of the parameters that they move."""
    return param_specs(table) if stage >= 1 else _whole(param_specs(table))


def differentiable(params: Tree, table: dict[str, Param], stage: int, late: bool) -> Tree:
    """What gradients are taken of, in the place of `params`.

    Matrices promise to be the same along the axes over which their gradients shall not be summed yet: all in stage 1,
    whose sums are scattered last, and, where sums shall be `late`, those along which nothing is cut.
    """
    waits = stage == 1 or late

    def promise(cut: P) -> P:
        if "fsdp" not in cut:
            return cut
        axes, unsummed = (cut, REPLICAS - {"fsdp"}) if stage >= 2 else (_without_fsdp(cut), REPLICAS)
        return P(*axes, reduced=unsummed if waits else frozenset())

    return jax.sharding.reshard(params, jax.tree.map(promise, param_specs(table)))


def model_parameters(differentiated: Tree, params: Tree, stage: int) -> Tree:
    """What the model takes: `differentiated`, in stage 2 with the whole parameters beside it."""
    return jax.tree.map(Slice, differentiated, params) if stage == 2 else differentiated


def summed(grads: Tree, table: dict[str, Param], stage: int, dtype: Any) -> Tree:
    """Gradients of what `differentiable` gave, with the sums that it left, cut like the optimizer state."""
    return jax.tree.map(lambda axes, grad: scattered(axes, grad, dtype=dtype), optimizer_specs(table, stage), grads)


def _whole(specs: Tree) -> Tree:
    return jax.tree.map(_without_fsdp, specs)


def _without_fsdp(axes: P) -> P:
    return P(*(None if axis == "fsdp" else axis for axis in axes))
