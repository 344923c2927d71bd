"""Learned sums for distances, added to scores (1910.10683): near distances have one each, far ones share."""

import jax
import jax.numpy as jnp
import numpy as np


def buckets(is_causal: bool, count: int, farthest: int) -> np.ndarray:
    """The bucket of each distance from `-farthest` to `farthest`, of key minus query; beyond, that of the ends.

    Half of the buckets, or of those of each direction, are for one distance; the borders of others grow geometrically.
    """
    ahead = np.arange(-farthest, farthest + 1)
    side = count if is_causal else count // 2
    distance = np.maximum(-ahead, 0) if is_causal else np.abs(ahead)
    single = side // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single)) / np.float32(
        np.log(farthest / single)
    )
    shared = np.minimum(single + (ratio * np.float32(side - single)).astype(np.int64), side - 1)
    found = np.where(distance < single, distance, shared)
    return found if is_causal else found + side * (ahead > 0)


def relative_bias(table_RN: jax.Array, ahead: jax.Array, is_causal: bool, farthest: int) -> jax.Array:
    """What is added to the scores of keys that are `ahead` of their query by so many tokens; float32 `[..., N]`."""
    of_distance = jnp.asarray(buckets(is_causal, table_RN.shape[0], farthest))
    wanted = of_distance[jnp.clip(ahead, -farthest, farthest) + farthest]
    return table_RN.astype(jnp.float32)[wanted]


def row_bias(table_RN: jax.Array, tokens: int, is_causal: bool, farthest: int) -> jax.Array:
    """`relative_bias` of all distances in a row of that many tokens: `[N, 2 T - 1]`, from the furthest behind on."""
    ahead_X = jnp.arange(1 - tokens, tokens)
    return relative_bias(table_RN, ahead_X, is_causal, farthest).T
