"""Rotary position embedding (2104.09864) in the half-split layout of Llama and GPT-NeoX."""

import jax
import jax.numpy as jnp


def rope_tables(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[B, T, 1, H/2]` in float32, computed once and used by every layer."""
    wavelengths = theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    # float32: bfloat16 rounds position 257 to 256.
    angle = positions_BT[..., None, None].astype(jnp.float32) / wavelengths
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate pairs `(x[i], x[i + H/2])` by the angle of their position."""
    cos, sin = tables
    x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)
