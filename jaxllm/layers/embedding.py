"""Looking up rows of a table, and putting learned ones over them."""

import jax
import jax.numpy as jnp

from jaxllm.layers.linear import project
from jaxllm.layers.shards import along_tokens


def lookup(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """`[V, D]` at `[B, T]` is `[B, T, D]`, cut like the ids."""
    return table_VD.at[ids_BT].get(mode="clip", out_sharding=along_tokens(ids_BT, 3))


def overlaid(x: jax.Array, table: jax.Array, places_BT: jax.Array) -> jax.Array:
    """`x` `[B, T, *out]` with rows of `table` `[U, *out]` where there is a place, and not -1; or of `[B, U, *out]`."""
    is_own_B = table.ndim == x.ndim
    chosen_BTU = jax.nn.one_hot(places_BT, table.shape[1 if is_own_B else 0], dtype=x.dtype)
    if is_own_B:
        rows = jnp.einsum("BTU,BU...->BT...", chosen_BTU, table.astype(x.dtype))
    else:
        rows = project(chosen_BTU, table)
    return jnp.where(places_BT.reshape(*places_BT.shape, *(1,) * (x.ndim - 2)) >= 0, rows, x)
