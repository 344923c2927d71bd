"""Looking up rows of a table."""

import jax

from jaxllm.layers.shards import along_tokens


def lookup(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """`[V, D]` at `[B, T]` is `[B, T, D]`, cut like the ids."""
    return table_VD.at[ids_BT].get(mode="clip", out_sharding=along_tokens(ids_BT, 3))
