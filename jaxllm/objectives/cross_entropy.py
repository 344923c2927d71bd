"""Cross-entropy over a large vocabulary without ever holding the logits of a whole batch.

The gradient with respect to the logits is known as soon as they are, so the forward pass of differentiation
also computes both gradients chunk by chunk, and the logits are never made twice (as rematerialisation would).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.layers.linear import product_type
from jaxllm.layers.shards import along_tokens, flipped, gradient_sharding, sharding_of, where_it_lies


class _Options(NamedTuple):
    axes: str
    chunk: int
    z_loss: float
    softcap: float | None


def cross_entropy(
    hidden_BTD: jax.Array,
    kernel: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    axes: str = "DV",
    bias_V: jax.Array | None = None,
    chunk: int = 512,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Weighted sum over tokens of `log Z - logit[target] + z_loss * (log Z)^2`, in float32 nats.

    Args:
        hidden_BTD: final hidden states; their type is that of the products.
        kernel: the head; its gradient has its type, whatever that of the products is.
        targets_BT: ids.
        weights_BT: 0 drops a token.
        axes: of the kernel, `DV` or `VD`; XLA would copy a kernel that is transposed first.
        bias_V: is added to the logits, before the cap.
        chunk: tokens on one device whose logits exist at once; at least one of each row.
        z_loss: weight of the penalty that keeps log Z near 0 (2204.02311 uses 1e-4).
        softcap: logits become `cap * tanh(logits / cap)` (2408.00118).

    Returns:
        The loss sum, the sum of weights, and `{"nll": the sum without the penalty}`.
    """
    options = _Options(axes, chunk, z_loss, softcap)
    total, nll = _loss(options, hidden_BTD, kernel, bias_V, targets_BT, weights_BT)
    return total, jnp.sum(weights_BT), {"nll": jax.lax.stop_gradient(nll)}


def _weighted_first(weights_BT: jax.Array) -> jax.Array:
    """An order `[B, T]` of the tokens that each device holds, from 0, in which those without weight are last."""

    def local(weights_BT: jax.Array) -> jax.Array:
        return jnp.argsort(weights_BT.reshape(-1) == 0).astype(jnp.int32).reshape(weights_BT.shape)

    return where_it_lies(local, weights_BT, lambda cut: P(*cut))


def _split(x: jax.Array, order_BT: jax.Array, chunks: int) -> jax.Array:
    """`[B, T, ...] -> [C, B, T / C, ...]` in that order, filled up with zeros. Each device has chunks of its own."""

    def local(x: jax.Array, order: jax.Array) -> jax.Array:
        B, T = order.shape
        x = x.reshape(B * T, *x.shape[2:])[order.reshape(-1)]
        x = jnp.pad(x, ((0, B * (-T % chunks)),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(chunks, B, -1, *x.shape[1:])

    return where_it_lies(local, x, lambda cut: P(None, *cut), order_BT)


def _joined(x: jax.Array, order_BT: jax.Array) -> jax.Array:
    """The inverse of `_split`."""

    def local(x: jax.Array, order: jax.Array) -> jax.Array:
        x = x.reshape(-1, *x.shape[3:])[jnp.argsort(order.reshape(-1))]
        return x.reshape(*order.shape, *x.shape[1:])

    return where_it_lies(local, x, lambda cut: P(*cut[1:]), order_BT)


def _chunks(hidden_BTD: jax.Array, chunk: int) -> int:
    """How many each device has."""
    sharding = sharding_of(hidden_BTD)
    B, T, _ = hidden_BTD.shape if sharding is None else sharding.shard_shape(hidden_BTD.shape)
    return min(T, -(-B * T // chunk))


def _chunk_loss(
    options: _Options,
    kernel: jax.Array,
    bias_V: jax.Array | None,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, Any]:
    """Both sums of one chunk, and what the gradient needs: logits, log Z, one-hot mask, slope of the cap."""
    # float32: the loss is a difference of numbers of the size of log Z.
    logits = jnp.einsum(f"BTD,{options.axes}->BTV", x_BTD, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias_V is None else logits + bias_V
    slope = None
    if options.softcap is not None:
        bounded = jnp.tanh(logits / options.softcap)
        logits, slope = options.softcap * bounded, 1.0 - bounded * bounded
    top = jnp.max(logits, axis=-1, keepdims=True)
    log_z = (top + jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))[..., 0]
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=sharding_of(logits))
    hit = ids == targets_BT[..., None]
    nll = jnp.sum(weights_BT * (log_z - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)))
    total = nll + options.z_loss * jnp.sum(weights_BT * log_z * log_z)
    return total, nll, (logits, log_z, hit, slope)


def _where_weighted(add: Callable[..., Any], skip: Callable[..., Any]) -> Callable[..., Any]:
    """A step over chunks that skips those in which no token has a weight."""
    return lambda carry, xs: jax.lax.cond(jnp.any(xs[2] != 0), add, skip, carry, xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    options: _Options,
    hidden_BTD: jax.Array,
    kernel: jax.Array,
    bias_V: jax.Array | None,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    chunks = _chunks(hidden_BTD, options.chunk)
    kernel = kernel.astype(hidden_BTD.dtype)

    def add(sums: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, ...]) -> tuple[Any, None]:
        total, nll, _ = _chunk_loss(options, kernel, bias_V, *xs)
        return (sums[0] + total, sums[1] + nll), None

    def skip(sums: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return sums, None

    zero, order = jnp.zeros((), jnp.float32), _weighted_first(weights_BT)
    xs = tuple(_split(x, order, chunks) for x in (hidden_BTD, targets_BT, weights_BT))
    return jax.lax.scan(_where_weighted(add, skip), (zero, zero), xs)[0]


def _loss_forward(
    options: _Options,
    hidden_BTD: jax.Array,
    kernel: jax.Array,
    bias_V: jax.Array | None,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array | None, ...]]:
    chunks = _chunks(hidden_BTD, options.chunk)
    is_transposed, kernel_dtype = options.axes == "VD", kernel.dtype
    gradient = flipped(gradient_sharding(kernel)) if is_transposed else gradient_sharding(kernel)
    kernel = kernel.astype(hidden_BTD.dtype)

    def add(carry: Any, xs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        x_BTD, _, weights = xs
        total, nll, (logits, log_z, hit, slope) = _chunk_loss(options, kernel, bias_V, *xs)
        probability = jnp.exp(logits - log_z[..., None]) * (1.0 + 2.0 * options.z_loss * log_z)[..., None]
        d_logits = (probability - hit) * weights[..., None]
        if slope is not None:
            d_logits *= slope
        d_bias = None if bias_V is None else carry[3] + jnp.sum(d_logits, axis=(0, 1))
        d_logits = d_logits.astype(x_BTD.dtype)
        dx = jnp.einsum(
            f"BTV,{options.axes}->BTD",
            d_logits,
            kernel,
            preferred_element_type=product_type(x_BTD),
            out_sharding=along_tokens(x_BTD, 3),
        ).astype(x_BTD.dtype)
        # The narrow operand is on the left, whatever the axes of the kernel are, as in `layers/linear.py`.
        d_kernel = jnp.einsum("BTD,BTV->DV", x_BTD, d_logits, preferred_element_type=jnp.float32, out_sharding=gradient)
        return (carry[0] + total, carry[1] + nll, carry[2] + d_kernel, d_bias), dx

    def skip(carry: Any, xs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        return carry, jnp.zeros_like(xs[0])

    zero = jnp.zeros((), jnp.float32)
    shape = kernel.shape[::-1] if is_transposed else kernel.shape
    d_kernel = jax.lax.full(shape, 0, jnp.float32, sharding=gradient)
    start = (zero, zero, d_kernel, None if bias_V is None else jnp.zeros_like(bias_V))
    order = _weighted_first(weights_BT)
    xs = tuple(_split(x, order, chunks) for x in (hidden_BTD, targets_BT, weights_BT))
    (total, nll, d_kernel, d_bias), dx = jax.lax.scan(_where_weighted(add, skip), start, xs)
    d_kernel = (d_kernel.T if is_transposed else d_kernel).astype(kernel_dtype)
    return (total, nll), (_joined(dx, order), d_kernel, d_bias)


def _loss_backward(
    options: _Options, saved: tuple[jax.Array | None, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    dx_BTD, d_kernel, d_bias = saved
    scale = cotangents[0]
    assert dx_BTD is not None
    assert d_kernel is not None
    d_bias = None if d_bias is None else d_bias * scale
    return dx_BTD * scale.astype(dx_BTD.dtype), d_kernel * _beside(d_kernel, scale), d_bias, None, None


def _beside(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`scale` in the type, and with the promises, that a factor of `x` must have where `x` is not summed yet."""
    scale, sharding = scale.astype(x.dtype), sharding_of(x)
    return scale if sharding is None else jax.sharding.reshard(scale, P(reduced=sharding.spec.unreduced))


_loss.defvjp(_loss_forward, _loss_backward)
