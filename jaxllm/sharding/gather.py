"""Parameters whole where they are used, and their gradients summed and cut where they are made.

The sums are written down as reduce-scatters: of a plain `reshard` the partitioner makes an all-reduce and a slice,
twice the traffic.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.layers.shards import sharding_of
from jaxllm.quantization.blocks import Int8, Nf4, Quantized, dequantized, is_quantized
from jaxllm.sharding.rules import REPLICAS, fsdp_dimension, without_fsdp


class Slice(NamedTuple):
    """The slice of a parameter that takes its gradient, where every device holds the whole too (ZeRO stage 2)."""

    cut: jax.Array
    whole: jax.Array


def is_slice(x: Any) -> bool:
    """Whether `x` is a `Slice`: the leaves of a tree that holds some."""
    return isinstance(x, Slice)


class Types(NamedTuple):
    """In what numbers travel between devices; both ends hold float32."""

    gathered: Any = jnp.float32
    """Parameters, which are only used in this type; matrices in fewer bits travel as they are."""
    summed: Any = jnp.float32
    """Gradients."""


def gather_at_use(types: Types) -> Callable[[Tree], Tree]:
    """The `at_use` of a model whose parameters are cut by `rules.table_specs`, slices or whole.

    Undoes the `fsdp` cut and keeps the `tensor` cut. The gradient of what was cut is scattered again where it is made:
    summed over `fsdp` by a reduce-scatter, and what is left of it over the other `REPLICAS` by an all-reduce, unless
    the parameter promises to be the same there (`reduced`). What is whole stays as it is.
    """

    def leaf(x: jax.Array | Slice | Quantized) -> jax.Array:
        if isinstance(x, Int8 | Nf4):
            return dequantized(jax.tree.map(_gathered, x), types.gathered)
        cut, whole = x if isinstance(x, Slice) else (x, None)
        held = jax.typeof(cut).sharding.spec
        axes = P(*held.partitions)
        return cut if fsdp_dimension(axes) is None else _whole(axes, held.reduced, types, cut, whole)

    return lambda params: jax.tree.map(leaf, params, is_leaf=lambda x: is_slice(x) or is_quantized(x))


def _gathered(x: jax.Array) -> jax.Array:
    """`x`, of which no gradient is taken, whole along `fsdp`."""
    sharding = sharding_of(x)
    return x if sharding is None else jax.sharding.reshard(x, without_fsdp(P(*sharding.spec.partitions)))


def scattered(axes: P, x: jax.Array, unsummed: frozenset[str] = frozenset(), dtype: Any = jnp.float32) -> jax.Array:
    """A sum over mesh axes, of which every device holds a part, cut by `axes`; still a part over `unsummed`.

    It travels in `dtype`, and comes in the type of `x`.
    """
    held = jax.typeof(x).sharding.spec
    cut = P(*axes, unreduced=unsummed)
    if held.unreduced <= unsummed:
        return jax.sharding.reshard(x, cut)
    part = x.astype(dtype)
    dimension = fsdp_dimension(axes)
    if dimension is not None and "fsdp" in held.unreduced and jax.sharding.get_abstract_mesh().shape["fsdp"] > 1:
        scatter = functools.partial(jax.lax.psum_scatter, axis_name="fsdp", scatter_dimension=dimension, tiled=True)
        part = jax.shard_map(scatter, out_specs=P(*axes, unreduced=held.unreduced - {"fsdp"}))(part)
    return jax.sharding.reshard(part, cut).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _whole(axes: P, promised: frozenset[str], types: Types, cut: jax.Array, whole: jax.Array | None) -> jax.Array:
    """`cut`, whose partition is `axes`, gathered; or its `whole`, which is there already."""
    gathered = P(*without_fsdp(axes), reduced=REPLICAS)
    if whole is not None:
        return jax.sharding.reshard(whole, gathered)
    return jax.sharding.reshard(cut.astype(types.gathered), gathered).astype(cut.dtype)


def _whole_forward(
    axes: P, promised: frozenset[str], types: Types, cut: jax.Array, whole: jax.Array | None
) -> tuple[jax.Array, None]:
    return _whole(axes, promised, types, cut, whole), None


def _whole_backward(
    axes: P, promised: frozenset[str], types: Types, _: None, unsummed: jax.Array
) -> tuple[jax.Array, None]:
    return scattered(axes, unsummed, promised, types.summed), None


_whole.defvjp(_whole_forward, _whole_backward)
