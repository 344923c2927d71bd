"""Softmax attention (1706.03762) with grouped queries (2305.13245).

Two functions, for the two ways in which a model meets its keys:

- `attention`: whole rows of tokens attend to themselves or to other rows (training, scoring). By a kernel of the
  platform, or block by block in XLA; no way ever holds the scores `[B, N, T, S]`, but cuDNN is given a mask
  `[B, 1, T, S]`.
- `cached_attention`: few queries against a cache whose slots are only partly filled (generation).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P

from jaxllm.layers.blockwise import QUERY_BLOCK, blockwise_attention
from jaxllm.layers.kernels import Case, cudnn_attention, splash_attention, why_not
from jaxllm.layers.masks import NEGATIVE, reach, reach_into
from jaxllm.layers.ring import ring_attention
from jaxllm.layers.shards import platform

Backend = Literal["auto", "xla", "splash", "cudnn"]

KERNELS: dict[str, Backend] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
"""The kernel of each platform that has one."""


class Mask(NamedTuple):
    """Which keys a token sees: those of its segment, a run of equal ids; all, or only those up to itself."""

    segments_BT: jax.Array
    is_causal: bool = True
    prefix_BT: jax.Array | None = None
    """True where a token is seen by its whole segment, by earlier tokens too."""
    key_segments_BS: jax.Array | None = None
    """Of other rows that are attended to: a token sees the keys of the segment with its own id, from 0 to S."""


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    window: int | None = None,
    softcap: float | None = None,
    bias_NX: jax.Array | None = None,
    backend: Backend = "auto",
) -> jax.Array:
    """Each token attends to the keys that it sees; `[B, T, N, H]` in the type of `q`.

    Every (row, key-value head) pair is independent, so under a mesh the shards of batch and heads are computed where
    they lie. Rows that are cut over devices, and then laid `ring.zigzag`, are computed by `ring_attention`.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        mask: what is seen.
        window: limits the reach to the last `window` tokens.
        softcap: scores become `cap * tanh(scores / cap)` (2408.00118).
        bias_NX: `bias_NX[:, T - 1 + s - t]`, in float32, is added to the score of query t and key s.
        backend: what computes it; `auto` is the platform's kernel where that can, and XLA elsewhere. Memory grows with
            T, but with its square for the mask that `cudnn_attention` needs.

    Raises:
        ValueError: anything but causal attention without a bias in rows that are cut over devices.
    """
    spec = jax.typeof(q_BTNH).sharding.spec
    batch, tokens, heads, _ = spec or (None,) * 4
    rest = [mask.prefix_BT, mask.key_segments_BS, bias_NX]
    if tokens is not None and jax.sharding.get_abstract_mesh().shape[tokens] > 1:
        if not mask.is_causal or any(x is not None for x in rest):
            raise ValueError("rows that are cut over devices (mesh.sequence) attend causally only, without a bias")
        attend = functools.partial(ring_attention, axis=tokens, window=window, softcap=softcap)
        rest = []
    else:
        options = _Options(mask.is_causal and mask.prefix_BT is None, window, softcap, backend)
        attend = functools.partial(_whole_rows, options)
    if not any(spec):
        return attend(q_BTNH, k_BSKH, v_BSKH, mask.segments_BT, *rest)
    # Each input is taken as it is cut: a single key-value head carries no axis, not even one of size 1.
    attend_locally = jax.shard_map(attend, out_specs=P(batch, tokens, heads, None), check_vma=False)
    return attend_locally(q_BTNH, k_BSKH, v_BSKH, mask.segments_BT, *rest)


class _Options(NamedTuple):
    is_causal: bool
    window: int | None
    softcap: float | None
    backend: Backend


def _whole_rows(
    options: _Options,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array,
    prefix_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    bias_NX: jax.Array | None,
) -> jax.Array:
    is_causal, window, softcap, backend = options
    if backend == "auto":
        native = KERNELS.get(platform(), "xla")
        _, T, _, H = q_BTNH.shape
        has_other_mask = prefix_BT is not None or key_segments_BS is not None
        case = Case(platform(), T, H, q_BTNH.dtype, softcap, has_other_mask, bias_NX is not None)
        backend = "xla" if native == "xla" or why_not(native, case) else native
    if backend == "splash":
        limits: Any = {"is_causal": is_causal, "window": window, "softcap": softcap}
        return splash_attention(q_BTNH, k_BSKH, v_BSKH, segments_BT, **limits)
    if key_segments_BS is not None:
        seen = reach_into(segments_BT, key_segments_BS)
    elif is_causal:
        seen = reach(segments_BT, window)
    else:
        seen = reach(segments_BT, window, jnp.ones_like(segments_BT, bool) if prefix_BT is None else prefix_BT)
    if backend == "cudnn":
        return cudnn_attention(q_BTNH, k_BSKH, v_BSKH, seen, is_causal=is_causal)
    return blockwise_attention(
        q_BTNH, k_BSKH, v_BSKH, seen, bias_NX, is_causal=is_causal, window=window, softcap=softcap
    )


def cached_attention(
    q_BTNH: jax.Array,
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    slots_BT: jax.Array,
    *,
    window: int | None = None,
    softcap: float | None = None,
    bias: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Queries in slots `slots_BT` of a cache of `S` slots attend to every slot up to their own.

    Slots beyond a query's own are empty or belong to padding, and are never read. Scores of `QUERY_BLOCK` queries of
    each row exist at once. `bias` gives what is added to the score, `[..., N]`, from the distance of key and query.
    """
    T = q_BTNH.shape[1]
    attend = functools.partial(_few_cached, k_BKHS, v_BKSH, window, softcap, bias)
    if T <= QUERY_BLOCK:
        return attend(q_BTNH, slots_BT)
    free = -T % QUERY_BLOCK
    q = jnp.pad(q_BTNH, ((0, 0), (0, free), (0, 0), (0, 0)))
    slots = jnp.pad(slots_BT, ((0, 0), (0, free)))
    blocks = (rearrange(x, "B (n t) ... -> n B t ...", t=QUERY_BLOCK) for x in (q, slots))
    out = jax.lax.map(lambda block: attend(*block), tuple(blocks))
    return rearrange(out, "n B t N H -> B (n t) N H")[:, :T]


def gated_attention(
    q_BTNH: jax.Array,
    k_UKH: jax.Array,
    v_UKH: jax.Array,
    gate_N: jax.Array,
    there_BU: jax.Array | None = None,
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Attention to learned keys and values alone, times tanh of a gate: nothing where that is 0 (2303.16199).

    Args:
        q_BTNH: queries.
        k_UKH: learned keys; each row of the batch has its own where they are `[B, U, K, H]`.
        v_UKH: learned values.
        gate_N: of each head; or `[B, N]`.
        there_BU: 1 for a learned key, and 0 for one that fills up a row whose adapter has fewer.
        softcap: as in `attention`.
    """
    spec = jax.typeof(q_BTNH).sharding.spec

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, gate: jax.Array, there: jax.Array | None = None) -> jax.Array:
        B = "B" if k.ndim == 4 else ""
        q = rearrange(q, "B T (K G) H -> B T K G H", K=k.shape[-2]) * q.shape[-1] ** -0.5
        # float32: as in other attention.
        s = jnp.einsum(f"BTKGH,{B}UKH->BTKGU", q, k.astype(q.dtype), preferred_element_type=jnp.float32)
        s = s if softcap is None else softcap * jnp.tanh(s / softcap)
        s = s if there is None else jnp.where(there[:, None, None, None] > 0, s, NEGATIVE)
        p = jax.nn.softmax(s, axis=-1)
        out = jnp.einsum(f"BTKGU,{B}UKH->BTKGH", p.astype(q.dtype), v.astype(q.dtype))
        open_N = jnp.tanh(gate)[..., None] if not B else jnp.tanh(gate)[:, None, :, None]
        return (rearrange(out, "B T K G H -> B T (K G) H") * open_N).astype(q.dtype)

    if not any(spec):
        return attend(q_BTNH, k_UKH, v_UKH, gate_N, there_BU)
    assert there_BU is None, "rows with adapters of their own are not cut over devices"
    if jax.typeof(q_BTNH).sharding.mesh.size == 1:  # there jax inlines `shard_map`, and loses what is promised
        k_UKH, v_UKH = (jax.sharding.reshard(x, P(*jax.typeof(x).sharding.spec.partitions)) for x in (k_UKH, v_UKH))
    return jax.shard_map(attend, out_specs=P(*spec), check_vma=False)(q_BTNH, k_UKH, v_UKH, gate_N)


def _few_cached(
    k_BKHS: jax.Array,
    v_BKSH: jax.Array,
    window: int | None,
    softcap: float | None,
    bias: Callable[[jax.Array], jax.Array] | None,
    q_BTNH: jax.Array,
    slots_BT: jax.Array,
) -> jax.Array:
    _, K, H, S = k_BKHS.shape
    T = q_BTNH.shape[1]
    q = rearrange(q_BTNH, "B T (K G) H -> B K (G T) H", K=K) * H**-0.5
    # float32 for the reason given in `blockwise.scores`.
    s = rearrange(jnp.matmul(q, k_BKHS, preferred_element_type=jnp.float32), "B K (G T) S -> B K G T S", T=T)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    ahead_BTS = jnp.arange(S) - slots_BT[..., None]
    if bias is not None:
        s += rearrange(bias(ahead_BTS), "B T S (K G) -> B K G T S", K=K)
    visible_BTS = (ahead_BTS <= 0) & (ahead_BTS > -(window or S))
    p = jax.nn.softmax(jnp.where(visible_BTS[:, None, None], s, NEGATIVE), axis=-1).astype(v_BKSH.dtype)
    out = jnp.matmul(rearrange(p, "B K G T S -> B K (G T) S"), v_BKSH)
    return rearrange(out, "B K (G T) H -> B T (K G) H", T=T).astype(q_BTNH.dtype)
