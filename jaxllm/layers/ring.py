"""Ring attention (2310.01889) for rows that are cut over devices: keys and values travel, queries stay.

A row of T tokens is cut into 2 S chunks for S devices, and device i holds chunks i and 2 S - 1 - i (`zigzag`). So each
device has two products of chunks to do at each step of the ring, whichever keys have come to it: the second chunk of
its queries sees all first chunks; besides, its first chunk sees the first chunks before it, and its second chunk the
second chunks after its own. No product is wasted on a pair that the causal mask hides (but for half of a device's own).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from jaxllm.layers.blockwise import QUERY_BLOCK, SAVED, block_gradients, pairs_at_once, products, scores, weighted
from jaxllm.layers.masks import reach


def zigzag(tokens: int, devices: int) -> np.ndarray:
    """The order in which a row of `tokens` is laid over `devices`: place i of the new row is token `order[i]`."""
    chunks = np.arange(tokens).reshape(2 * devices, -1)
    return np.concatenate([chunks[c] for i in range(devices) for c in (i, 2 * devices - 1 - i)])


def places(axis: str, tokens: int) -> jax.Array:
    """Where this device's `tokens` tokens of a row that is laid `zigzag` stand in the whole row, inside `shard_map`."""
    C = tokens // 2
    starts = _starts(jax.lax.axis_index(axis), jax.lax.axis_size(axis), C)
    return jnp.concatenate([start + jnp.arange(C) for start in starts])


def ring_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    axis: str,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """`[B, T, N, H]` of this device's T tokens of every row, inside `shard_map`, for rows that are laid `zigzag`."""
    K, H = k_BTKH.shape[2:]
    C = q_BTNH.shape[1] // 2
    q = rearrange(q_BTNH, "B (c C) (K G) H -> c (B K) G C H", c=2, K=K) * H**-0.5
    k, v = (rearrange(x, "B (c C) K H -> c (B K) C H", c=2) for x in (k_BTKH, v_BTKH))
    whole = reach(_in_order(jax.lax.all_gather(segments_BT, axis)), window)
    mine = _starts(jax.lax.axis_index(axis), jax.lax.axis_size(axis), C)
    first, last = (
        jnp.stack([jnp.repeat(jax.lax.dynamic_slice_in_dim(x, start, C, axis=1), K, axis=0) for start in mine])
        for x in whole
    )
    out = _ring(axis, softcap, q, k, v, first, last)
    return rearrange(out, "c (B K) G C H -> B (c C) (K G) H", K=K)


def _in_order(segments_SBT: jax.Array) -> jax.Array:
    """The rows `[B, S T]` as they were before they were laid zigzag."""
    firsts, seconds = rearrange(segments_SBT, "S B (c C) -> c S B C", c=2)
    return rearrange(jnp.concatenate([firsts, seconds[::-1]]), "S B C -> B (S C)")


def _chunks(k: jax.Array, v: jax.Array, device: jax.Array, devices: int) -> tuple["_Chunk", "_Chunk"]:
    """The two chunks of keys that belong to a device."""
    starts = _starts(device, devices, k.shape[2])
    return _Chunk(k[0], v[0], starts[0]), _Chunk(k[1], v[1], starts[1])


def _starts(device: jax.Array | int, devices: int, C: int) -> tuple[jax.Array | int, jax.Array | int]:
    """The places in the whole row at which the two chunks of a device begin."""
    return device * C, (2 * devices - 1 - device) * C


class _Chunk(NamedTuple):
    """One chunk of keys for every pair `p` of a row and a key-value head."""

    k_pCH: jax.Array
    v_pCH: jax.Array
    start: jax.Array | int


class _Queries(NamedTuple):
    """One chunk of queries for every pair, and the first and the last key that each sees."""

    q_pGCH: jax.Array
    first_pC: jax.Array
    last_pC: jax.Array


class _Sums(NamedTuple):
    """The attention of one chunk of queries so far: the weighted values, the greatest score, the sum of weights."""

    out_pGCH: jax.Array
    top_pGC: jax.Array
    total_pGC: jax.Array


def _over_pairs(fn: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`fn` of each pair of a row and a key-value head."""
    return jax.lax.map(lambda xs: fn(*xs), arrays, batch_size=pairs_at_once(arrays[0].shape[0]))


def _sums(cap: float | None, queries: _Queries, keys: _Chunk) -> _Sums:
    """Of one chunk of queries over one chunk of keys."""

    def one(q: jax.Array, first: jax.Array, last: jax.Array, k: jax.Array, v: jax.Array) -> _Sums:
        place, parts = keys.start + jnp.arange(k.shape[0]), []
        for i in range(0, q.shape[1], QUERY_BLOCK):
            rows = slice(i, i + QUERY_BLOCK)
            s, _ = scores(q[:, rows], k, first[rows], last[rows], place, cap)
            top = jnp.max(s, axis=-1)
            p = jnp.exp(s - top[..., None])
            parts.append(_Sums(weighted(p, v), top, jnp.sum(p, axis=-1)))
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)

    return _over_pairs(one, *queries, keys.k_pCH, keys.v_pCH)


def _joined(a: _Sums, b: _Sums) -> _Sums:
    top = jnp.maximum(a.top_pGC, b.top_pGC)
    scale_a, scale_b = jnp.exp(a.top_pGC - top), jnp.exp(b.top_pGC - top)
    out = a.out_pGCH * scale_a[..., None] + b.out_pGCH * scale_b[..., None]
    return _Sums(out, top, a.total_pGC * scale_a + b.total_pGC * scale_b)


def _chosen(condition: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _passed_on(axis: str, tree: Any) -> Any:
    """What the device before this one holds."""
    S = jax.lax.axis_size(axis)
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, [(i, (i + 1) % S) for i in range(S)]), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(
    axis: str, cap: float | None, q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array
) -> jax.Array:
    return _ring_forward(axis, cap, q, k, v, first, last)[0]


def _ring_forward(
    axis: str, cap: float | None, q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array, last: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    i, S = jax.lax.axis_index(axis), jax.lax.axis_size(axis)

    queries = [_Queries(q[c], first[c], last[c]) for c in (0, 1)]
    near, far = _chunks(k, v, i, S)
    sums = (
        _sums(cap, queries[0], near),
        _joined(_sums(cap, queries[1], far), _sums(cap, queries[1], near)),
    )

    def step(carry: Any, r: jax.Array) -> tuple[Any, None]:
        travelling, (of_first, of_second) = carry
        k, v = _passed_on(axis, travelling)
        j = (i - r) % S
        near, far = _chunks(k, v, j, S)
        of_second = _joined(of_second, _sums(cap, queries[1], near))
        is_before = j < i
        other = _sums(cap, _chosen(is_before, queries[0], queries[1]), _chosen(is_before, near, far))
        of_first = _chosen(is_before, _joined(of_first, other), of_first)
        of_second = _chosen(is_before, of_second, _joined(of_second, other))
        return ((k, v), (of_first, of_second)), None

    (_, sums), _ = jax.lax.scan(step, ((k, v), sums), jnp.arange(1, S))
    out = jnp.stack([s.out_pGCH / s.total_pGC[..., None] for s in sums]).astype(q.dtype)
    log_sums = jnp.stack([s.top_pGC + jnp.log(s.total_pGC) for s in sums])
    out, log_sums = checkpoint_name(out, SAVED), checkpoint_name(log_sums, SAVED)
    return out, (q, k, v, first, last, out, log_sums)


def _ring_backward(
    axis: str, cap: float | None, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, first, last, out, log_sums = saved
    i, S = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    queries = [_Known(_Queries(q[c], first[c], last[c]), d_out[c], log_sums[c], delta[c]) for c in (0, 1)]
    gradients = functools.partial(_gradients, cap)
    near, far = _chunks(k, v, i, S)
    (dq0, dk0, dv0), (dq1, dk1, dv1), (dq2, dk2, dv2) = (
        gradients(queries[c], keys) for c, keys in ((0, near), (1, near), (1, far))
    )
    dq, dk, dv = jnp.stack([dq0, dq1 + dq2]), jnp.stack([dk0 + dk1, dk2]), jnp.stack([dv0 + dv1, dv2])

    def step(carry: Any, r: jax.Array) -> tuple[Any, None]:
        dq, travelling = carry
        k, v, dk, dv = _passed_on(axis, travelling)
        j = (i - r) % S
        is_before = j < i
        near, far = _chunks(k, v, j, S)
        dq1, dk1, dv1 = gradients(queries[1], near)
        other = gradients(_chosen(is_before, queries[0], queries[1]), _chosen(is_before, near, far))
        nothing = jax.tree.map(jnp.zeros_like, other)
        to_first, to_second = _chosen(is_before, (other, nothing), (nothing, other))
        dq += jnp.stack([to_first[0], dq1 + to_second[0]])
        dk += jnp.stack([dk1 + to_first[1], to_second[1]])
        dv += jnp.stack([dv1 + to_first[2], to_second[2]])
        return (dq, (k, v, dk, dv)), None

    (dq, (_, _, dk, dv)), _ = jax.lax.scan(step, (dq, (k, v, dk, dv)), jnp.arange(1, S))
    dk, dv = _passed_on(axis, (dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


class _Known(NamedTuple):
    """What the forward pass leaves of one chunk of queries, and the gradient that comes back to it."""

    queries: _Queries
    d_out_pGCH: jax.Array
    log_sums_pGC: jax.Array
    delta_pGC: jax.Array
    """The sum of `out * d_out`."""


def _gradients(cap: float | None, known: _Known, keys: _Chunk) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(dq, dk, dv)` of one chunk of queries and one chunk of keys, in float32."""

    def one(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        q, first, last, d_out, log_sums, delta, k, v = arrays
        place, dqs = keys.start + jnp.arange(k.shape[0]), []
        dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        for i in range(0, q.shape[1], QUERY_BLOCK):
            rows = slice(i, i + QUERY_BLOCK)
            s, slope = scores(q[:, rows], k, first[rows], last[rows], place, cap)
            p = jnp.exp(s - log_sums[:, rows, None])
            ds = p * (products(d_out[:, rows], v) - delta[:, rows, None]) * slope
            dq, dk_block, dv_block = block_gradients(q[:, rows], k, d_out[:, rows], p, ds)
            dqs.append(dq)
            dk, dv = dk + dk_block, dv + dv_block
        return jnp.concatenate(dqs, axis=1), dk, dv

    return _over_pairs(one, *known.queries, *known[1:], keys.k_pCH, keys.v_pCH)


_ring.defvjp(_ring_forward, _ring_backward)
