"""Asking an array how it is cut. Under explicit mesh axes the type of an array carries its sharding."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def platform() -> str:
    """What the program is made for: the devices of the current mesh, or those that jax takes by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


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


def flipped(sharding: NamedSharding | None) -> NamedSharding | None:
    """That of a transposed matrix."""
    if sharding is None:
        return None
    spec = sharding.spec
    return NamedSharding(sharding.mesh, P(*reversed(spec.partitions), unreduced=spec.unreduced))


def along_tokens(x_BT: jax.Array, ndim: int) -> NamedSharding | None:
    """The sharding of an `ndim`-dimensional array cut like the first two axes of `x_BT` alone; none without a mesh."""
    sharding = sharding_of(x_BT)
    return sharding and NamedSharding(sharding.mesh, P(*sharding.spec.partitions[:2], *(None,) * (ndim - 2)))


def where_it_lies(
    local: Callable[..., jax.Array], x: jax.Array, result: Callable[[P], P], *others: jax.Array
) -> jax.Array:
    """`local` of what each device holds of `x` and of others, put together as `result` says of the partition of `x`."""
    sharding = sharding_of(x)
    if sharding is None:
        return local(x, *others)
    return jax.shard_map(local, out_specs=result(sharding.spec.partitions))(x, *others)
