"""ZeRO stages (1910.02054) as transforms of spec trees: what is cut along `fsdp`, and when gradients are summed.

    stage   parameters   gradients   optimizer state, moving average
    0       whole        whole       whole                             (DDP, 2006.15704)
    1       whole        whole       cut
    2       whole        cut         cut
    3       cut          cut         cut                               (FSDP, 2304.11277)

A gradient that is kept whole is summed once for all microbatches; one that is kept cut is scattered in each, layer by
layer. Along `data` every stage keeps replicas, between which sums come last: hybrid sharding.

`cut` is what `rules.table_specs` says of the parameters.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.sharding.gather import Slice, scattered
from jaxllm.sharding.rules import REPLICAS, fsdp_dimension, without_fsdp


def parameter_specs(cut: Tree, stage: int) -> Tree:
    """How the parameters lie between steps."""
    return cut if stage == 3 else jax.tree.map(without_fsdp, cut)


def gradient_specs(cut: Tree, stage: int) -> Tree:
    """How the gradients are kept from one microbatch to the next."""
    return cut if stage >= 2 else jax.tree.map(without_fsdp, cut)


def optimizer_specs(cut: Tree, stage: int) -> Tree:
    """How the optimizer's moments and the moving average lie, and the slices of the parameters that they move."""
    return cut if stage >= 1 else jax.tree.map(without_fsdp, cut)


def differentiable(params: Tree, cut: Tree, stage: int, late: bool) -> Tree:
    """What gradients are taken of, in the place of `params`.

    Matrices promise to be the same along the axes over which their gradients shall not be summed yet: all in stage 1,
    whose sums are scattered last, and, where sums shall be `late`, those along which nothing is cut.
    """
    waits = stage == 1 or late

    def promise(axes: P) -> P:
        if fsdp_dimension(axes) is None:
            return axes
        held, unsummed = (axes, REPLICAS - {"fsdp"}) if stage >= 2 else (without_fsdp(axes), REPLICAS)
        return P(*held, reduced=unsummed if waits else frozenset())

    return jax.sharding.reshard(params, jax.tree.map(promise, cut))


def model_parameters(differentiated: Tree, params: Tree, stage: int) -> Tree:
    """What the model takes: `differentiated`, in stage 2 with the whole parameters beside it."""
    return jax.tree.map(Slice, differentiated, params) if stage == 2 else differentiated


def summed(grads: Tree, cut: Tree, stage: int, dtype: Any) -> Tree:
    """Gradients of what `differentiable` gave, with the sums that it left, cut like the optimizer state."""
    return jax.tree.map(lambda axes, grad: scattered(axes, grad, dtype=dtype), optimizer_specs(cut, stage), grads)
