"""Attention in plain XLA, block by block: the scores of all pairs never exist at once.

The backward pass computes the probabilities again from their saved normalisers (2205.14135).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from jaxllm.layers.masks import NEGATIVE, Reach
from jaxllm.layers.shards import platform

QUERY_BLOCK = 128
"""Queries whose scores exist at once. On CPU 64 and 256 are slower: scores of 128 x 512 stay in the cache."""

SAVED = "attention"
"""Names the results that a rematerialisation policy may save instead of attending twice."""


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    reach: Reach,
    bias_NX: jax.Array | None = None,
    *,
    is_causal: bool,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """`[B, T, N, H]`.

    `is_causal` (no query sees past itself) and `window` say which blocks can be left out; both are of rows that attend
    to themselves. `bias_NX[:, T - 1 + s - t]`, in float32, is added to the score of query t and key s.
    """
    B, _, K, H = k_BSKH.shape
    q = rearrange(q_BTNH, "B T (K G) H -> (B K) G T H", K=K) * H**-0.5
    k, v = (rearrange(x, "B S K H -> (B K) S H") for x in (k_BSKH, v_BSKH))
    first, last = (jnp.repeat(x, K, axis=0) for x in reach)
    bias = None if bias_NX is None else jnp.tile(rearrange(bias_NX, "(K G) X -> K G X", K=K), (B, 1, 1))
    one = functools.partial(_attend, is_causal, window, softcap)
    out = jax.lax.map(lambda args: one(*args), (q, k, v, first, last, bias), batch_size=pairs_at_once(B * K))
    return rearrange(out, "(B K) G T H -> B T (K G) H", K=K)


def pairs_at_once(pairs: int) -> int | None:
    """Of rows and key-value heads. A CPU is fastest with one, whose scores fit its cache; an accelerator with all."""
    return None if platform() == "cpu" else pairs


def products(x_GtH: jax.Array, y_sH: jax.Array) -> jax.Array:
    """Of all pairs: `[G, t, s]` in float32."""
    G, t, H = x_GtH.shape
    return jnp.dot(x_GtH.reshape(G * t, H), y_sH.T, preferred_element_type=jnp.float32).reshape(G, t, -1)


def scores(
    q_GtH: jax.Array,
    k_sH: jax.Array,
    first_t: jax.Array,
    last_t: jax.Array,
    place_s: jax.Array,
    cap: float | None,
    bias_Gts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Masked scores `[G, t, s]` in float32, and d(score)/d(product) (1 without a soft-cap); `place_s` of the keys."""
    # float32: probabilities are differences of exponents, and bfloat16 keeps 8 bits of a score.
    s = products(q_GtH, k_sH)
    slope = jnp.ones((), jnp.float32)
    if cap is not None:
        bounded = jnp.tanh(s / cap)
        s, slope = cap * bounded, 1.0 - bounded * bounded
    s = s if bias_Gts is None else s + bias_Gts
    return jnp.where((place_s >= first_t[:, None]) & (place_s <= last_t[:, None]), s, NEGATIVE), slope


def weighted(p_Gts: jax.Array, v_sH: jax.Array) -> jax.Array:
    """`[G, t, H]` in float32."""
    G, t, s = p_Gts.shape
    return jnp.dot(p_Gts.reshape(G * t, s).astype(v_sH.dtype), v_sH, preferred_element_type=jnp.float32).reshape(
        G, t, -1
    )


def block_gradients(
    q_GtH: jax.Array, k_sH: jax.Array, d_GtH: jax.Array, p_Gts: jax.Array, ds_Gts: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(dq, dk, dv)` of one block, in float32, from its probabilities and the gradient of its products."""
    H, shape = q_GtH.shape[-1], q_GtH.shape
    q, d = (x.reshape(-1, H) for x in (q_GtH, d_GtH))
    p, ds = (x.reshape(len(q), -1).astype(q.dtype) for x in (p_Gts, ds_Gts))
    dq = jnp.dot(ds, k_sH, preferred_element_type=jnp.float32).reshape(shape)
    # The small factor is transposed: XLA's CPU product is slower with the large one contracted over rows.
    dk = jnp.dot(q.T, ds, preferred_element_type=jnp.float32).T
    dv = jnp.dot(d.T, p, preferred_element_type=jnp.float32).T
    return dq, dk, dv


def _blocks(T: int, S: int, is_causal: bool, window: int | None) -> list[tuple[slice, slice]]:
    """Slices of T queries, each with those of the S keys that any of them can see."""
    spans = [(i, min(i + QUERY_BLOCK, T)) for i in range(0, T, QUERY_BLOCK)]
    return [(slice(i, j), slice(max(0, i + 1 - (window or T)), j if is_causal else S)) for i, j in spans]


def _spread(rows: slice, cols: slice, T: int, bias_GX: jax.Array) -> jax.Array:
    """What a block of queries and keys adds to its scores `[G, t, s]`, of the sums for all distances of T queries."""
    t, s = rows.stop - rows.start, cols.stop - cols.start
    n = t + s - 1
    of_block = jax.lax.dynamic_slice_in_dim(bias_GX, T - rows.stop + cols.start, n, axis=1)
    # Row i of a matrix of n + 1 columns, filled with repetitions of n numbers, begins at the i-th of them.
    turned = jnp.tile(of_block, (1, t + 1))[:, : t * (n + 1)].reshape(-1, t, n + 1)
    return turned[:, ::-1, :s]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    is_causal: bool,
    window: int | None,
    cap: float | None,
    q_GTH: jax.Array,
    k_SH: jax.Array,
    v_SH: jax.Array,
    first_T: jax.Array,
    last_T: jax.Array,
    bias_GX: jax.Array | None,
) -> jax.Array:
    return _attend_forward(is_causal, window, cap, q_GTH, k_SH, v_SH, first_T, last_T, bias_GX)[0]


def _attend_forward(
    is_causal: bool,
    window: int | None,
    cap: float | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    first: jax.Array,
    last: jax.Array,
    bias: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    outs, log_sums = [], []
    for rows, cols in _blocks(q.shape[1], k.shape[0], is_causal, window):
        place = jnp.arange(cols.start, cols.stop)
        added = None if bias is None else _spread(rows, cols, q.shape[1], bias)
        s, _ = scores(q[:, rows], k[cols], first[rows], last[rows], place, cap, added)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        outs.append(weighted(p, v[cols]) / total)
        log_sums.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=1).astype(q.dtype), SAVED)
    log_sums = checkpoint_name(jnp.concatenate(log_sums, axis=1), SAVED)
    return out, (q, k, v, first, last, bias, out, log_sums)


def _attend_backward(
    is_causal: bool, window: int | None, cap: float | None, saved: tuple[Any, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, first, last, bias, out, log_sums = saved
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    d_bias = None if bias is None else jnp.zeros_like(bias)
    for rows, cols in _blocks(q.shape[1], k.shape[0], is_causal, window):
        place = jnp.arange(cols.start, cols.stop)
        spread = functools.partial(_spread, rows, cols, q.shape[1])
        added = None if bias is None else spread(bias)
        s, slope = scores(q[:, rows], k[cols], first[rows], last[rows], place, cap, added)
        p = jnp.exp(s - log_sums[:, rows, None])
        dp = products(d_out[:, rows], v[cols])
        ds = p * (dp - delta[:, rows])
        dq, dk_block, dv_block = block_gradients(q[:, rows], k[cols], d_out[:, rows], p, ds * slope)
        dqs.append(dq)
        dk, dv = dk.at[cols].add(dk_block), dv.at[cols].add(dv_block)
        if d_bias is not None:
            d_bias += jax.linear_transpose(spread, bias)(ds)[0]
    dq = jnp.concatenate(dqs, axis=1).astype(q.dtype)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None, d_bias


_attend.defvjp(_attend_forward, _attend_backward)
