"""Attention in plain XLA, block by block: the scores of all pairs never exist at once.

The backward pass computes the probabilities again from their saved normalisers (2205.14135).
"""

import functools

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
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    reach: Reach,
    *,
    is_causal: bool,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """`[B, T, N, H]`. `is_causal` (no query sees past itself) and `window` say which blocks can be left out."""
    B, _, K, H = k_BTKH.shape
    q = rearrange(q_BTNH, "B T (K G) H -> (B K) G T H", K=K) * H**-0.5
    k, v = (rearrange(x, "B T K H -> (B K) T H") for x in (k_BTKH, v_BTKH))
    first, last = (jnp.repeat(x, K, axis=0) for x in reach)
    one = functools.partial(_attend, is_causal, window, softcap)
    out = jax.lax.map(lambda args: one(*args), (q, k, v, first, last), batch_size=pairs_at_once(B * K))
    return rearrange(out, "(B K) G T H -> B T (K G) H", K=K)


def pairs_at_once(pairs: int) -> int | None:
    """Of rows and key-value heads. A CPU is fastest with one, whose scores fit its cache; an accelerator with all."""
    return None if platform() == "cpu" else pairs


def scores(
    q_GtH: jax.Array, k_sH: jax.Array, first_t: jax.Array, last_t: jax.Array, place_s: jax.Array, cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Masked scores `[G, t, s]` in float32, and d(score)/d(product) (1 without a soft-cap); `place_s` of the keys."""
    G, t, H = q_GtH.shape
    # float32: probabilities are differences of exponents, and bfloat16 keeps 8 bits of a score.
    s = jnp.dot(q_GtH.reshape(G * t, H), k_sH.T, preferred_element_type=jnp.float32).reshape(G, t, -1)
    slope = jnp.ones((), jnp.float32)
    if cap is not None:
        bounded = jnp.tanh(s / cap)
        s, slope = cap * bounded, 1.0 - bounded * bounded
    return jnp.where((place_s >= first_t[:, None]) & (place_s <= last_t[:, None]), s, NEGATIVE), slope


def weighted(p_Gts: jax.Array, v_sH: jax.Array) -> jax.Array:
    """`[G, t, H]` in float32."""
    G, t, s = p_Gts.shape
    return jnp.dot(p_Gts.reshape(G * t, s).astype(v_sH.dtype), v_sH, preferred_element_type=jnp.float32).reshape(
        G, t, -1
    )


def block_gradients(
    q_GtH: jax.Array,
    k_sH: jax.Array,
    v_sH: jax.Array,
    d_GtH: jax.Array,
    p_Gts: jax.Array,
    delta_Gt1: jax.Array,
    slope: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(dq, dk, dv)` of one block, in float32, from its probabilities and from `delta`, the sum of `out * d_out`."""
    H, shape = q_GtH.shape[-1], q_GtH.shape
    q, d = (x.reshape(-1, H) for x in (q_GtH, d_GtH))
    dp = jnp.dot(d, v_sH.T, preferred_element_type=jnp.float32).reshape(p_Gts.shape)
    ds = (p_Gts * (dp - delta_Gt1) * slope).reshape(q.shape[0], -1).astype(q.dtype)
    p = p_Gts.reshape(ds.shape).astype(q.dtype)
    dq = jnp.dot(ds, k_sH, preferred_element_type=jnp.float32).reshape(shape)
    # The small factor is transposed: XLA's CPU product is slower with the large one contracted over rows.
    dk = jnp.dot(q.T, ds, preferred_element_type=jnp.float32).T
    dv = jnp.dot(d.T, p, preferred_element_type=jnp.float32).T
    return dq, dk, dv


def _blocks(T: int, is_causal: bool, window: int | None) -> list[tuple[slice, slice]]:
    """Slices of queries, each with the keys that any of them can see."""
    spans = [(i, min(i + QUERY_BLOCK, T)) for i in range(0, T, QUERY_BLOCK)]
    return [(slice(i, j), slice(max(0, i + 1 - (window or T)), j if is_causal else T)) for i, j in spans]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    is_causal: bool,
    window: int | None,
    cap: float | None,
    q_GTH: jax.Array,
    k_TH: jax.Array,
    v_TH: jax.Array,
    first_T: jax.Array,
    last_T: jax.Array,
) -> jax.Array:
    return _attend_forward(is_causal, window, cap, q_GTH, k_TH, v_TH, first_T, last_T)[0]


def _attend_forward(
    is_causal: bool,
    window: int | None,
    cap: float | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    first: jax.Array,
    last: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    outs, log_sums = [], []
    for rows, cols in _blocks(q.shape[1], is_causal, window):
        place = jnp.arange(cols.start, cols.stop)
        s, _ = scores(q[:, rows], k[cols], first[rows], last[rows], place, cap)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        outs.append(weighted(p, v[cols]) / total)
        log_sums.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=1).astype(q.dtype), SAVED)
    return out, (q, k, v, first, last, out, checkpoint_name(jnp.concatenate(log_sums, axis=1), SAVED))


def _attend_backward(
    is_causal: bool, window: int | None, cap: float | None, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, first, last, out, log_sums = saved
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, cols in _blocks(q.shape[1], is_causal, window):
        place = jnp.arange(cols.start, cols.stop)
        s, slope = scores(q[:, rows], k[cols], first[rows], last[rows], place, cap)
        p = jnp.exp(s - log_sums[:, rows, None])
        dq, dk_block, dv_block = block_gradients(q[:, rows], k[cols], v[cols], d_out[:, rows], p, delta[:, rows], slope)
        dqs.append(dq)
        dk, dv = dk.at[cols].add(dk_block), dv.at[cols].add(dv_block)
    return jnp.concatenate(dqs, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)
