"""Softmax attention (1706.03762) with grouped queries (2305.13245).

Two functions, for the two ways in which a model meets its keys:

- `causal_attention`: queries and keys are the same row of tokens (training, scoring). Keys are read block
  by block up to the diagonal and the backward pass recomputes the probabilities (2205.14135), so neither
  pass ever holds `[B, N, T, T]`.
- `cached_attention`: few queries against a cache whose slots are only partly filled (generation).
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

QUERY_BLOCK = 128
"""Queries whose scores exist at once. On CPU 64 and 256 are slower: scores of 128 x 512 stay in the cache."""

SAVED = "attention"
"""Names the results that a rematerialisation policy may save instead of attending twice."""

NEGATIVE = -1e30
"""Stands for minus infinity, which would turn a row without any key into NaN."""


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Each token attends to itself and to earlier tokens of its segment; `[B, T, N, H]` in the type of `q`.

    A segment is a run of equal ids. `window` limits the reach to the last `window` tokens. Every (row, key-value
    head) pair is independent, so under a mesh the shards of batch and heads are computed where they lie.
    """
    attend = functools.partial(_local_attention, window=window, softcap=softcap)
    spec = jax.typeof(q_BTNH).sharding.spec
    if not any(spec):
        return attend(q_BTNH, k_BTKH, v_BTKH, segments_BT)
    batch, _, heads, _ = spec
    # Each input is taken as it is cut: a single key-value head carries no axis, not even one of size 1.
    return jax.shard_map(attend, out_specs=P(batch, None, heads, None), check_vma=False)(
        q_BTNH, k_BTKH, v_BTKH, segments_BT
    )


def _local_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    B, _, K, H = k_BTKH.shape
    q = rearrange(q_BTNH, "B T (K G) H -> (B K) G T H", K=K) * H**-0.5
    k, v = (rearrange(x, "B T K H -> (B K) T H") for x in (k_BTKH, v_BTKH))
    first = jnp.repeat(_first_visible(segments_BT, window), K, axis=0)
    one = functools.partial(_attend, window, softcap)
    # A CPU is fastest with one pair at a time, whose scores fit its cache; an accelerator wants them all.
    at_once = None if jax.default_backend() == "cpu" else B * K
    out = jax.lax.map(lambda args: one(*args), (q, k, v, first), batch_size=at_once)
    return rearrange(out, "(B K) G T H -> B T (K G) H", K=K)


def _first_visible(segments_BT: jax.Array, window: int | None) -> jax.Array:
    """The first key that each query sees. With the query's own place it is the whole mask, in two comparisons.

    (Comparing the segments of every pair instead takes jax 0.10 on CPU 7 times as long: it does not vectorise it.)
    """
    place = jnp.arange(segments_BT.shape[1])
    begins = segments_BT != jnp.roll(segments_BT, 1, axis=1)
    first_BT = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    return first_BT if window is None else jnp.maximum(first_BT, place - window + 1)


def _blocks(T: int, window: int | None) -> list[tuple[slice, slice]]:
    """Slices of queries, each with the keys that any of them can see."""
    return [
        (slice(i, min(i + QUERY_BLOCK, T)), slice(max(0, i + 1 - (window or T)), min(i + QUERY_BLOCK, T)))
        for i in range(0, T, QUERY_BLOCK)
    ]


def _scores(
    q: jax.Array, k: jax.Array, first: jax.Array, rows: slice, cols: slice, cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Masked scores of one block `[G, t, s]` in float32, and d(score)/d(product) (1 without a soft-cap)."""
    G, t, H = q.shape
    # float32: probabilities are differences of exponents, and bfloat16 keeps 8 bits of a score.
    s = jnp.dot(q.reshape(G * t, H), k.T, preferred_element_type=jnp.float32).reshape(G, t, -1)
    slope = jnp.ones((), jnp.float32)
    if cap is not None:
        bounded = jnp.tanh(s / cap)
        s, slope = cap * bounded, 1.0 - bounded * bounded
    row = jnp.arange(rows.start, rows.stop)[:, None]
    col = jnp.arange(cols.start, cols.stop)[None, :]
    return jnp.where((col >= first[rows, None]) & (col <= row), s, NEGATIVE), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    window: int | None, cap: float | None, q_GTH: jax.Array, k_TH: jax.Array, v_TH: jax.Array, first_T: jax.Array
) -> jax.Array:
    return _attend_forward(window, cap, q_GTH, k_TH, v_TH, first_T)[0]


def _attend_forward(
    window: int | None, cap: float | None, q: jax.Array, k: jax.Array, v: jax.Array, first: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    G, T, H = q.shape
    outs, log_sums = [], []
    for rows, cols in _blocks(T, window):
        s, _ = _scores(q[:, rows], k[cols], first, rows, cols, cap)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        out = jnp.dot(p.reshape(-1, p.shape[-1]).astype(v.dtype), v[cols], preferred_element_type=jnp.float32)
        outs.append(out.reshape(G, -1, H) / total)
        log_sums.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=1).astype(q.dtype), SAVED)
    return out, (q, k, v, first, out, checkpoint_name(jnp.concatenate(log_sums, axis=1), SAVED))


def _attend_backward(
    window: int | None, cap: float | None, saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, first, out, log_sums = saved
    G, T, H = q.shape
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for rows, cols in _blocks(T, window):
        s, slope = _scores(q[:, rows], k[cols], first, rows, cols, cap)
        p = jnp.exp(s - log_sums[:, rows, None])
        q_rows, d_rows = (x[:, rows].reshape(-1, H) for x in (q, d_out))
        dp = jnp.dot(d_rows, v[cols].T, preferred_element_type=jnp.float32).reshape(p.shape)
        ds = (p * (dp - delta[:, rows]) * slope).reshape(q_rows.shape[0], -1).astype(q.dtype)
        p = p.reshape(ds.shape).astype(q.dtype)
        dq.append(jnp.dot(ds, k[cols], preferred_element_type=jnp.float32).reshape(G, -1, H))
        # The small factor is transposed: XLA's CPU product is slower with the large one contracted over rows.
        dk = dk.at[cols].add(jnp.dot(q_rows.T, ds, preferred_element_type=jnp.float32).T)
        dv = dv.at[cols].add(jnp.dot(d_rows.T, p, preferred_element_type=jnp.float32).T)
    return jnp.concatenate(dq, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)


def cached_attention(
    q_BTNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    slots_BT: jax.Array,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Queries in slots `slots_BT` of a cache of `S` slots attend to every slot up to their own.

    Slots beyond a query's own are empty or belong to padding, and are never read. Scores of `QUERY_BLOCK` queries of
    each row exist at once.
    """
    T = q_BTNH.shape[1]
    attend = functools.partial(_few_cached, k_BKHS, v_BKSH, window, softcap)
    if T <= QUERY_BLOCK:
        return attend(q_BTNH, slots_BT)
    free = -T % QUERY_BLOCK
    q = jnp.pad(q_BTNH, ((0, 0), (0, free), (0, 0), (0, 0)))
    slots = jnp.pad(slots_BT, ((0, 0), (0, free)))
    blocks = (rearrange(x, "B (n t) ... -> n B t ...", t=QUERY_BLOCK) for x in (q, slots))
    out = jax.lax.map(lambda block: attend(*block), tuple(blocks))
    return rearrange(out, "n B t N H -> B (n t) N H")[:, :T]


def _few_cached(
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    window: int | None,
    softcap: float | None,
    q_BTNH: jax.Array,
    slots_BT: jax.Array,
) -> jax.Array:
    _, K, H, S = k_BKHS.shape
    T = q_BTNH.shape[1]
    q = rearrange(q_BTNH, "B T (K G) H -> B K (G T) H", K=K) * H**-0.5
    # float32 for the reason given in `_scores`.
    s = rearrange(jnp.matmul(q, k_BKHS, preferred_element_type=jnp.float32), "B K (G T) S -> B K G T S", T=T)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    distance = slots_BT[:, None, None, :, None] - jnp.arange(S)
    visible = (distance >= 0) & (distance < (window or S))
    p = jax.nn.softmax(jnp.where(visible, s, NEGATIVE), axis=-1).astype(v_BKSH.dtype)
    out = jnp.matmul(rearrange(p, "B K G T S -> B K (G T) S"), v_BKSH)
    return rearrange(out, "B K (G T) H -> B T (K G) H", T=T).astype(q_BTNH.dtype)
