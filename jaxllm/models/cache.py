"""The key-value cache: a pytree that goes into a model and comes out of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, in slots `0 .. length - 1` of each row."""

    keys: Tree
    """`[L, B, K, H, S]`, after the rotation; or a tuple of one array a layer, beside layers in that form."""
    values: Tree
    """`[L, B, K, S, H]`, or a tuple. Both are products' right sides as they lie, which a CPU need not copy."""
    length: jax.Array
    """`[B]` filled slots. Lower it and the slots beyond are free again, which is how padding is dropped."""
    memory: "MemoryCache | None" = None
    """Of a decoder that attends to an encoder."""


class MemoryCache(NamedTuple):
    """Keys and values of an encoder's hidden states, as cross-attention reads them."""

    keys: Tree
    """`[L, B, K, H, S]`, or a tuple."""
    values: Tree
    """`[L, B, K, S, H]`, or a tuple."""
    length: jax.Array
    """`[B]` slots that hold a token."""


def empty_cache(config: TransformerConfig, batch: int, slots: int, dtype: Any) -> Cache:
    """A cache of `slots` free slots for each of `batch` rows."""
    L, B, K, H, S = config.layers, batch, config.kv_heads, config.head_dim, slots
    keys, values = jnp.zeros((L, B, K, H, S), dtype), jnp.zeros((L, B, K, S, H), dtype)
    return Cache(keys, values, jnp.zeros((batch,), jnp.int32))


def write(
    keys_BKHS: jax.Array, values_BKSH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, start_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One layer's cache with `k` and `v` placed in each row from its own start.

    Where `start + T > S` the row is placed at `S - T` instead: what it held is lost.
    """

    def row(keys: jax.Array, values: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array) -> Any:
        k, v = rearrange(k, "T K H -> K H T"), rearrange(v, "T K H -> K T H")
        keys = jax.lax.dynamic_update_slice(keys, k.astype(keys.dtype), (0, 0, start))
        values = jax.lax.dynamic_update_slice(values, v.astype(values.dtype), (0, start, 0))
        return keys, values

    return jax.vmap(row)(keys_BKHS, values_BKSH, k_BTKH, v_BTKH, start_B)
