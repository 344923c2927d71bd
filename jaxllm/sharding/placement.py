"""Between the hosts and the devices of a mesh: batches on the way in, whole arrays on the way out."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.layers.ring import zigzag
from jaxllm.sharding.rules import BATCH


@functools.cache
def own_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """The rows, of a batch of that many, that devices of this process hold, in order.

    Where an axis that does not cut rows spans processes, several of them hold the same ones.
    """
    whole = rows, mesh.shape["sequence"]
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map(whole).values()
    return tuple(sorted({row for index in slices if index is not None for row in range(rows)[index[0]]}))


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, rows: int | None = None) -> dict[str, jax.Array]:
    """Arrays `[B, T]` cut by `BATCH`, their rows laid `zigzag` where the mesh cuts them.

    The order is that of `ring_attention`, and `dropout` knows it. Nothing else depends on the order of a row: positions
    travel with the tokens, and losses are sums.

    Args:
        batch: arrays `[len(own_rows(mesh, rows)), T]` of the rows that this process holds.
        mesh: of all processes.
        rows: B; as many as `batch` has, when left out.
    """
    parts, sharding = mesh.shape["sequence"], NamedSharding(mesh, BATCH)

    def placed(x: np.ndarray) -> jax.Array:
        whole = (len(x) if rows is None else rows, *x.shape[1:])
        own = own_rows(mesh, whole[0])
        laid = x[:, zigzag(x.shape[1], parts)] if parts > 1 else x

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = range(whole[0])[index[0]]
            first = own.index(wanted.start)  # a device's rows follow each other, so also among `own`
            return laid[(slice(first, first + len(wanted)), *index[1:])]

        return jax.make_array_from_callback(whole, sharding, part)

    return {name: placed(x) for name, x in batch.items()}


def fetched(tree: Tree, keep: bool) -> Tree | None:
    """The arrays of `tree`, each whole on this host if `keep`; every process calls this.

    Leaf by leaf, so that a device has room for it. What this process already has all of is left where it is.
    """

    def leaf(x: jax.Array) -> jax.Array | np.ndarray | None:
        if x.is_fully_addressable:
            return x
        assert isinstance(x.sharding, NamedSharding)
        whole = jax.device_put(x, NamedSharding(x.sharding.mesh, P()))
        return np.asarray(whole.addressable_data(0)) if keep else None

    leaves = [leaf(x) for x in jax.tree.leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves) if keep else None
