"""Asking an array how it is cut. Under explicit mesh axes the type of an array carries its sharding."""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def sharding_of(x: jax.Array) -> NamedSharding | None:
    """How `x` is cut; none without a mesh."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding


def gradient_sharding(x: jax.Array) -> NamedSharding | None:
    """How the cotangent of `x` is cut: it is not summed yet over the axes on which `x` promises to be the same."""
    sharding = sharding_of(x)
    if sharding is None:
        return None
    spec = sharding.spec
    return NamedSharding(sharding.mesh, P(*spec.partitions, unreduced=spec.reduced))


def along_batch(x: jax.Array, ndim: int) -> NamedSharding | None:
    """The sharding of an `ndim`-dimensional array cut like the first axis of `x` alone; none without a mesh."""
    sharding = sharding_of(x)
    return sharding and NamedSharding(sharding.mesh, P(sharding.spec.partitions[0], *(None,) * (ndim - 1)))
