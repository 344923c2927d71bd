"""Linear maps with a backward pass of their own.

It states the sharding of every product, so that a contraction over a cut axis is an all-reduce by design;
it keeps the weight gradient in the parameter's type; and it contracts over rows with the narrow operand on
the left, where XLA's own transpose rule puts the wide one and copies it (a fifth of a CPU training step).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.layers.shards import along_tokens, gradient_sharding, sharding_of

SAVED = "product"
"""Names the results that a rematerialisation policy may save instead of multiplying twice."""

WIDE = "wide product"
"""Names those of F columns, which weigh most."""


def project(x_BTD: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, name: str = SAVED) -> jax.Array:
    """`[B, T, D] x [D, *out] -> [B, T, *out]`, in the type of `x`; output axes keep the kernel's sharding."""
    y = checkpoint_name(_product(x_BTD, _as_matrix(kernel, 1)), name)
    y = y.reshape(*x_BTD.shape[:2], *kernel.shape[1:])
    return _with_bias(y, bias)


def project_all(x_BTD: jax.Array, layers: Sequence[Tree], *, name: str = SAVED) -> list[jax.Array]:
    """`project` by several layers, each `{"kernel", "bias"}`.

    Of columns that are cut over devices each makes a part of the gradient of `x`: the parts are added up first, and
    summed over the devices once.
    """
    cut = [_columns_cut(layer["kernel"]) for layer in layers]
    once_BTD = x_BTD if not any(cut) else _same_along(x_BTD, frozenset().union(*cut))
    return [project(once_BTD if axes else x_BTD, **layer, name=name) for layer, axes in zip(layers, cut, strict=True)]


def _columns_cut(kernel: jax.Array) -> frozenset[str]:
    """The mesh axes along which outputs of a projection are cut."""
    sharding = sharding_of(kernel)
    return frozenset() if sharding is None else frozenset(filter(None, sharding.spec.partitions[1:]))


def _same_along(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """`x` with the promise to be the same along mesh axes, so that its gradient is not summed before it comes here."""
    return jax.sharding.reshard(x, P(*jax.typeof(x).sharding.spec.partitions, reduced=axes))


def merge(x_BTF: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`[B, T, *in] x [*in, D] -> [B, T, D]`, in the type of `x`; a cut input axis is summed over its devices."""
    x_BTI = x_BTF.reshape(*x_BTF.shape[:2], -1)
    y = checkpoint_name(_product(x_BTI, _as_matrix(kernel, kernel.ndim - 1)), SAVED)
    return _with_bias(y, bias)


def scaled(x: jax.Array, by: float) -> jax.Array:
    """`x` times a constant, in the type of `x`."""
    # float32: else the constant is rounded before the product is.
    return (x.astype(jnp.float32) * by).astype(x.dtype)


def _as_matrix(kernel: jax.Array, inputs: int) -> jax.Array:
    """`kernel` with its first `inputs` axes as one, and the others; only the first of either may be cut."""
    shape = math.prod(kernel.shape[:inputs]), math.prod(kernel.shape[inputs:])
    if (sharding := sharding_of(kernel)) is None:
        return kernel.reshape(shape)
    cuts = sharding.spec.partitions
    spec = P(cuts[0], cuts[inputs], reduced=sharding.spec.reduced)
    return jax.lax.reshape(kernel, shape, out_sharding=NamedSharding(sharding.mesh, spec))


def _with_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    # float32: the bias's gradient is a sum over all tokens of the batch.
    return y if bias is None else (y.astype(bias.dtype) + bias).astype(y.dtype)


@jax.custom_vjp
def _product(x_BTI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    contracts_cut_axis = jax.typeof(kernel_IO).sharding.spec.partitions[0] is not None
    out_sharding = along_tokens(x_BTI, 3) if contracts_cut_axis else None
    return jnp.dot(x_BTI, kernel_IO.astype(x_BTI.dtype), out_sharding=out_sharding)


def _forward(x_BTI: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x_BTI, kernel_IO), (x_BTI, kernel_IO)


def _backward(saved: tuple[jax.Array, jax.Array], d_BTO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTI, kernel_IO = saved
    dx = jnp.einsum("BTO,IO->BTI", d_BTO, kernel_IO.astype(d_BTO.dtype), out_sharding=gradient_sharding(x_BTI))
    # float32: a sum over all tokens of the batch, of which bfloat16 would keep 8 bits.
    wide_input = x_BTI.shape[-1] > d_BTO.shape[-1]
    left, right = (d_BTO, x_BTI) if wide_input else (x_BTI, d_BTO)
    d_kernel = jax.lax.dot_general(
        left,
        right,
        (((0, 1), (0, 1)), ((), ())),
        preferred_element_type=kernel_IO.dtype,
        out_sharding=_flipped(gradient_sharding(kernel_IO)) if wide_input else gradient_sharding(kernel_IO),
    )
    # Without the barrier XLA takes the transpose into the product, and the wide operand to the left again.
    return dx, jax.lax.optimization_barrier(d_kernel).T if wide_input else d_kernel


def _flipped(sharding: NamedSharding | None) -> NamedSharding | None:
    if sharding is None:
        return None
    spec = sharding.spec
    return NamedSharding(sharding.mesh, P(*reversed(spec.partitions), unreduced=spec.unreduced))


_product.defvjp(_forward, _backward)
