"""Matrices in 8 or 4 bits a number, with a scale for each block of neighbours (2305.14314).

    kind   codes                              a number   error of normal numbers (root mean square, relative)
    int8   absmax / 127, symmetric            8.25 bits  0.6 %
    nf4    16 levels as likely of a normal    4.25 bits  9.2 %

The bits are those of blocks of 64 numbers of the last axis, as published. Scales are bfloat16, and codes are
chosen for the scale as it is stored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxllm.common.trees import Tree

LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Of NF4, as published (appendix E)."""


class Int8(NamedTuple):
    """A matrix in int8."""

    codes: jax.Array
    """int8, of the shape of the matrix."""
    scales: jax.Array
    """bfloat16 `[..., blocks]`."""


class Nf4(NamedTuple):
    """A matrix in NF4."""

    codes: jax.Array
    """uint8, with two neighbours in each: the last axis is half as long."""
    scales: jax.Array
    """bfloat16 `[..., blocks]`."""


Quantized = Int8 | Nf4


def is_quantized(x: Any) -> bool:
    """Whether `x` is a matrix in fewer bits: a leaf of a tree that holds some."""
    return isinstance(x, Int8 | Nf4)


def quantized(x: jax.Array, kind: str, block: int) -> Quantized:
    """`x`, whose last axis is even, as `int8` or `nf4`, with a scale for every `block` numbers."""
    blocks = _blocks(x.astype(jnp.float32), block)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    scales = (largest / 127 if kind == "int8" else largest).astype(jnp.bfloat16)
    # float32, and 1 where all numbers are 0.
    shares = blocks / jnp.where(scales == 0, 1, scales).astype(jnp.float32)[..., None]
    if kind == "int8":
        return Int8(jnp.clip(jnp.round(shares), -127, 127).astype(jnp.int8).reshape(x.shape), scales)
    borders = (LEVELS[1:] + LEVELS[:-1]) / 2
    nearest = sum((shares > border).astype(jnp.uint8) for border in borders)
    pairs = rearrange(nearest.reshape(x.shape), "... (n two) -> two ... n", two=2)
    return Nf4(pairs[0] | pairs[1] << 4, scales)


def dequantized(x: Quantized, dtype: Any) -> jax.Array:
    """The numbers that a matrix stands for."""
    if isinstance(x, Int8):
        shares = x.codes.astype(dtype)
    else:
        codes = rearrange(jnp.stack([x.codes & 15, x.codes >> 4], axis=-1), "... n two -> ... (n two)")
        place = jax.typeof(codes).sharding
        found = jnp.asarray(LEVELS, dtype).at[codes.astype(jnp.int32)]
        shares = found.get(mode="promise_in_bounds", out_sharding=None if place.mesh.empty else place)
    blocks = _blocks(shares, shares.shape[-1] // x.scales.shape[-1])
    return (blocks * x.scales.astype(dtype)[..., None]).reshape(shares.shape)


def plain(tree: Tree, dtype: Any = jnp.float32) -> Tree:
    """`tree` with all matrices as the numbers that they stand for."""
    return jax.tree.map(lambda x: dequantized(x, dtype) if is_quantized(x) else x, tree, is_leaf=is_quantized)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
