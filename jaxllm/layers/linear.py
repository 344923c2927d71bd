"""Linear maps with a backward pass of their own.

It states the sharding of every product, so that a contraction over a cut axis is an all-reduce by design;
it keeps the weight gradient in the parameter's type; and it contracts over rows with the narrow operand on
the left, where XLA's own transpose rule puts the wide one and copies it (a fifth of a CPU training step).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxllm.common.trees import Tree
from jaxllm.layers.shards import along_tokens, flipped, gradient_sharding, platform, sharding_of

SAVED = "product"
"""Names the results that a rematerialisation policy may save instead of multiplying twice."""

WIDE = "wide product"
"""Names those of F columns, which weigh most."""


Drop = Callable[[jax.Array], jax.Array]


def project(
    x_BTD: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    name: str = SAVED,
    dropped: jax.Array | None = None,
    **update: jax.Array,
) -> jax.Array:
    """`[B, T, D] x [D, *out] -> [B, T, *out]`, in the type of `x`; output axes keep the kernel's sharding.

    Args:
        x_BTD: what is mapped.
        kernel: `[D, *out]`.
        bias: `[*out]`.
        name: of the product, for rematerialisation.
        dropped: what a low-rank update reads, if that is not `x`.
        update: its leaves, as `_updated` takes them, where there is one.
    """
    kernel_DO = _as_matrix(kernel, 1)
    y = checkpoint_name(_product(x_BTD, kernel_DO), name)
    if update:
        y = _updated(y, x_BTD if dropped is None else dropped, kernel_DO, 1, **update)
    y = y.reshape(*x_BTD.shape[:2], *kernel.shape[1:])
    return _with_bias(y, bias)


def project_all(
    x_BTD: jax.Array, layers: Sequence[Tree], *, name: str = SAVED, drop: Drop = lambda x: x
) -> list[jax.Array]:
    """`project` by several layers, each `{"kernel", "bias"}` and perhaps an update.

    Of columns that are cut over devices each makes a part of the gradient of `x`: the parts are added up first, and
    summed over the devices once.
    """
    cut = [_columns_cut(layer["kernel"]) for layer in layers]
    once_BTD = x_BTD if not any(cut) else _same_along(x_BTD, frozenset().union(*cut))
    dropped = drop(x_BTD)
    return [
        project(once_BTD if axes else x_BTD, **layer, name=name, dropped=dropped)
        for layer, axes in zip(layers, cut, strict=True)
    ]


def _columns_cut(kernel: jax.Array) -> frozenset[str]:
    """The mesh axes along which outputs of a projection are cut."""
    sharding = sharding_of(kernel)
    return frozenset() if sharding is None else frozenset(filter(None, sharding.spec.partitions[1:]))


def _same_along(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """`x` with the promise to be the same along mesh axes, so that its gradient is not summed before it comes here."""
    return jax.sharding.reshard(x, P(*jax.typeof(x).sharding.spec.partitions, reduced=axes))


def merge(
    x_BTF: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    drop: Drop = lambda x: x,
    **update: jax.Array,
) -> jax.Array:
    """`[B, T, *in] x [*in, D] -> [B, T, D]`, in the type of `x`; a cut input axis is summed over its devices.

    Args as for `project_all`.
    """
    x_BTI = x_BTF.reshape(*x_BTF.shape[:2], -1)
    kernel_ID = _as_matrix(kernel, kernel.ndim - 1)
    y = checkpoint_name(_product(x_BTI, kernel_ID), SAVED)
    if update:
        y = _updated(y, drop(x_BTI), kernel_ID, kernel.ndim - 1, **update)
    return _with_bias(y, bias)


def _updated(
    y_BTO: jax.Array,
    x_BTI: jax.Array,
    kernel_IO: jax.Array,
    reads: int,
    lora_a: jax.Array,
    lora_b: jax.Array,
    lora_scale: jax.Array,
    lora_magnitude: jax.Array | None = None,
    lora_gain: jax.Array | None = None,
) -> jax.Array:
    """The product `y` of `x` and a kernel, with a low-rank update (2106.09685) of the kernel.

    Args:
        y_BTO: without it.
        x_BTI: what the update reads.
        kernel_IO: what is updated.
        reads: how many axes of `lora_a` are summed over.
        lora_a: `[*in, Q]`; or `[B, *in, Q]`, where each row of the batch has its own, as have the others then.
        lora_b: `[Q, *out]`.
        lora_scale: `[Q]`.
        lora_magnitude: `[*out]`: the norms of the updated columns (2402.09353), whose own norm is no variable.
        lora_gain: `[*out]`: what the norms come to, as a factor of the columns, where that is known.
    """
    if lora_a.ndim > reads + 1:
        B, Q = len(x_BTI), lora_a.shape[-1]
        a_BIQ, b_BQO = lora_a.reshape(B, -1, Q), lora_b.reshape(B, Q, -1)
        inner = jnp.einsum("BTI,BIQ->BTQ", x_BTI, a_BIQ.astype(x_BTI.dtype)) * lora_scale[:, None]
        y_BTO += jnp.einsum("BTQ,BQO->BTO", inner.astype(x_BTI.dtype), b_BQO.astype(x_BTI.dtype))
        return y_BTO if lora_gain is None else (y_BTO * lora_gain.reshape(B, 1, -1)).astype(y_BTO.dtype)
    a_IQ, b_QO = _as_matrix(lora_a, reads), _as_matrix(lora_b, 1)
    inner = checkpoint_name(_product(x_BTI, a_IQ), SAVED)
    # float32: a scale need not be a number of eight bits.
    y_BTO += _product((inner * lora_scale.astype(jnp.float32)).astype(inner.dtype), b_QO)
    if lora_magnitude is not None:
        norm_O = column_norms(*map(_constant, (kernel_IO, a_IQ, b_QO, lora_scale)))
        y_BTO = (y_BTO * (lora_magnitude.reshape(norm_O.shape) / norm_O)).astype(y_BTO.dtype)
    return y_BTO


def _constant(x: jax.Array) -> jax.Array:
    """`x`, of which no gradient is taken, and which need not promise then how that would be summed."""
    x, sharding = jax.lax.stop_gradient(x), sharding_of(x)
    return x if sharding is None else jax.sharding.reshard(x, P(*sharding.spec.partitions))


def column_norms(kernel_IO: jax.Array, a_IQ: jax.Array, b_QO: jax.Array, scale_Q: jax.Array) -> jax.Array:
    """Norms `[O]` in float32 of the columns of an updated kernel."""
    updated_IO = kernel_IO.astype(jnp.float32) + (a_IQ * scale_Q) @ b_QO
    return jnp.sqrt(jnp.sum(updated_IO * updated_IO, axis=0))


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


def product_type(x: jax.Array) -> DTypeLike | None:
    """The type that a product of `x` is asked for in before it is rounded to that of `x`; none is as good.

    jax 0.10 on CPU multiplies bfloat16 into float32 four times as fast as into bfloat16.
    """
    return jnp.float32 if platform() == "cpu" and x.dtype == jnp.bfloat16 else None


@jax.custom_vjp
def _product(x_BTI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    contracts_cut_axis = jax.typeof(kernel_IO).sharding.spec.partitions[0] is not None
    out_sharding = along_tokens(x_BTI, 3) if contracts_cut_axis else None
    kernel_IO = kernel_IO.astype(x_BTI.dtype)
    y = jnp.dot(x_BTI, kernel_IO, preferred_element_type=product_type(x_BTI), out_sharding=out_sharding)
    return y.astype(x_BTI.dtype)


def _forward(x_BTI: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x_BTI, kernel_IO), (x_BTI, kernel_IO)


def _backward(saved: tuple[jax.Array, jax.Array], d_BTO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTI, kernel_IO = saved
    dx = jnp.einsum(
        "BTO,IO->BTI",
        d_BTO,
        kernel_IO.astype(d_BTO.dtype),
        preferred_element_type=product_type(x_BTI),
        out_sharding=gradient_sharding(x_BTI),
    ).astype(x_BTI.dtype)
    # float32: a sum over all tokens of the batch, of which bfloat16 would keep 8 bits.
    wide_input = x_BTI.shape[-1] > d_BTO.shape[-1]
    left, right = (d_BTO, x_BTI) if wide_input else (x_BTI, d_BTO)
    d_kernel = jax.lax.dot_general(
        left,
        right,
        (((0, 1), (0, 1)), ((), ())),
        preferred_element_type=kernel_IO.dtype,
        out_sharding=flipped(gradient_sharding(kernel_IO)) if wide_input else gradient_sharding(kernel_IO),
    )
    # Without the barrier XLA takes the transpose into the product, and the wide operand to the left again.
    return dx, jax.lax.optimization_barrier(d_kernel).T if wide_input else d_kernel


_product.defvjp(_forward, _backward)
