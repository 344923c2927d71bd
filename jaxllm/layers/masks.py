"""What each query of a row may see: a run of keys, from the first to the last, in the same row or in another.

Two places a query are the whole mask, in two comparisons. (Comparing the segments of every pair instead takes jax 0.10
on CPU 7 times as long: it does not vectorise it.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEGATIVE = -1e30
"""Stands for minus infinity, which would turn a row without any key into NaN."""


class Reach(NamedTuple):
    """The first and the last key that each query sees; int32 `[B, T]`."""

    first_BT: jax.Array
    last_BT: jax.Array


def reach_into(segments_BT: jax.Array, key_segments_BS: jax.Array) -> Reach:
    """The reach of every query into another row: all keys of the segment with its id, in numbers from 0 to S.

    A query without one sees a run that is empty.
    """
    S = key_segments_BS.shape[1]
    place = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), key_segments_BS.shape)

    def row(segments_T: jax.Array, key_segments_S: jax.Array, place_S: jax.Array) -> Reach:
        firsts = jax.ops.segment_min(place_S, key_segments_S, S + 1)
        lasts = jax.ops.segment_max(place_S, key_segments_S, S + 1)
        return Reach(firsts[segments_T], lasts[segments_T])

    return jax.vmap(row)(segments_BT, key_segments_BS, place)


def reach(segments_BT: jax.Array, window: int | None = None, prefix_BT: jax.Array | None = None) -> Reach:
    """The reach of every query of a row.

    Args:
        segments_BT: a segment is a run of equal ids; nobody sees out of his own.
        window: nobody sees further back than to the `window` last keys, himself among them.
        prefix_BT: true where a key is seen by the whole segment (the prefix of a prefix language model); all other keys
            are seen by those after them only.
    """
    place = jnp.broadcast_to(jnp.arange(segments_BT.shape[1], dtype=jnp.int32), segments_BT.shape)
    begins = segments_BT != jnp.roll(segments_BT, 1, axis=1)
    first_BT = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    if window is not None:
        first_BT = jnp.maximum(first_BT, place - window + 1)
    if prefix_BT is None:
        return Reach(first_BT, place)
    ends = jnp.roll(begins, -1, axis=1).at[:, -1].set(True)
    end_BT = jax.lax.cummin(jnp.where(ends, place, place.shape[1]), axis=1, reverse=True)
    last_prefix_BT = jax.lax.cummax(jnp.where(prefix_BT, place, -1), axis=1)
    return Reach(first_BT, jnp.maximum(place, jnp.take_along_axis(last_prefix_BT, end_BT, axis=1)))
