"""RMSNorm (1910.07467) and LayerNorm (1607.06450)."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """`x / rms(x) * scale` over the last axes, those of `scale`; any shape, the type of `x`."""
    axes = tuple(range(-scale.ndim, 0))
    # float32: the mean of squares of a wide bfloat16 vector loses its last digits.
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axes, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """`(x - mean) / std * scale + bias` over the last axis; any shape, the type of `x`."""
    # float32 for the reason above; subtracting the mean first avoids the cancellation in E[x^2] - E[x]^2.
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype)
