"""Inverted dropout (1207.0580).

The fate of an element follows from the key, its row, its place in the row and its column: it is the same on any mesh,
and each device draws for its own elements only.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.layers.ring import places
from jaxllm.layers.shards import sharding_of

BITS = 16
"""Of each draw: shares are multiples of 2^-16. A hash of two words serves four elements."""


def dropout(x_BTD: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of `x` and scale the rest by `1 / (1 - rate)`; without a key, `x` itself.

    Rows that are cut over devices lie `ring.zigzag`.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x_BTD
    return jnp.where(_kept(x_BTD, 1.0 - rate, key), x_BTD / (1.0 - rate), 0).astype(x_BTD.dtype)


def _kept(x_BTD: jax.Array, share: float | jax.Array, key: jax.Array) -> jax.Array:
    """Whether each element of `x` stays; bool `[B, T, D]`, cut like `x`."""
    B, T, D = x_BTD.shape
    sharding, below = sharding_of(x_BTD), jnp.round(jnp.float32(share) * 2**BITS).astype(jnp.uint32)
    if sharding is None:
        return _drawn(key, jnp.arange(B), jnp.arange(T), D, below)
    batch, tokens, columns = sharding.spec.partitions
    b, t, _ = sharding.shard_shape(x_BTD.shape)

    def own(key: jax.Array, below: jax.Array) -> jax.Array:
        first = 0 if batch is None else b * jax.lax.axis_index(batch)
        return _drawn(key, first + jnp.arange(b), jnp.arange(T) if t == T else places(tokens, t), D, below)

    kept = jax.shard_map(own, in_specs=P(), out_specs=P(batch, tokens, None))(key, below)
    return kept if columns is None else jax.sharding.reshard(kept, P(batch, tokens, columns))


def _drawn(key: jax.Array, rows_B: jax.Array, places_T: jax.Array, D: int, below: jax.Array) -> jax.Array:
    hashes = -(-D * BITS // 64)
    counts = places_T[:, None] * hashes + jnp.arange(hashes)

    def row(index: jax.Array) -> jax.Array:
        key_of = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
        return jax.random.key_data(key_of(jax.random.fold_in(key, index), counts))

    words = jax.vmap(row)(rows_B)
    draws = (words[..., i] >> shift & 2**BITS - 1 for i in (0, 1) for shift in (0, BITS))
    return jnp.concatenate([draw < below for draw in draws], axis=-1)[..., :D]
