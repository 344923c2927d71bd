"""Rotary position embedding (2104.09864) in the half-split layout of Llama and GPT-NeoX."""

import math

import jax
import jax.numpy as jnp

from jaxllm.config import RopeScaling

Tables = tuple[jax.Array, jax.Array]
"""Cosines and sines `[B, T, 1, R/2]` in float32, of the R numbers of a head that are rotated."""


AS_TRAINED = RopeScaling()
"""Wavelengths as they were in the pretraining."""


def rope_tables(
    positions_BT: jax.Array, head_dim: int, theta: float, fraction: float = 1.0, scaling: RopeScaling = AS_TRAINED
) -> Tables:
    """Computed once and used by every layer."""
    rotated = int(head_dim * fraction)
    wavelengths = theta ** (jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    size = 1.0
    if scaling.kind == "linear":
        wavelengths *= scaling.factor
    elif scaling.kind == "llama3":
        wavelengths = _blended(wavelengths, _share_kept_by_llama3(wavelengths, scaling), scaling.factor)
    elif scaling.kind == "yarn":
        wavelengths = _blended(wavelengths, _share_kept_by_yarn(rotated, theta, scaling), scaling.factor)
        size = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    # float32: bfloat16 rounds position 257 to 256.
    angle = positions_BT[..., None, None].astype(jnp.float32) / wavelengths
    return size * jnp.cos(angle), size * jnp.sin(angle)


def _blended(wavelengths: jax.Array, kept: jax.Array, factor: float) -> jax.Array:
    """Frequencies of which a share is kept and the rest divided by `factor`."""
    return 1.0 / (kept / wavelengths + (1.0 - kept) / (factor * wavelengths))


def _share_kept_by_llama3(wavelengths: jax.Array, scaling: RopeScaling) -> jax.Array:
    """1 for waves that turn more than `high` times in the original positions, 0 below `low`, linear between."""
    turns = scaling.original_positions / (2 * math.pi * wavelengths)
    return jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)


def _share_kept_by_yarn(rotated: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """The same between two dimensions (2309.00071), rounded outwards as its code does."""

    def dimension(turns: float) -> float:
        return rotated * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(dimension(scaling.high)), 0)
    last = min(math.ceil(dimension(scaling.low)), rotated - 1)
    ramp = (jnp.arange(rotated // 2, dtype=jnp.float32) - first) / max(last - first, 0.001)
    return 1.0 - jnp.clip(ramp, 0.0, 1.0)


def apply_rope(x_BTNH: jax.Array, tables: Tables) -> jax.Array:
    """Rotate pairs `(x[i], x[i + R/2])` of the first R numbers by the angle of their position."""
    cos, sin = tables
    half = cos.shape[-1]
    x = x_BTNH.astype(jnp.float32)
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1).astype(x_BTNH.dtype)
