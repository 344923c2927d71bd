"""Softmax attention (1706.03762) with grouped queries (2305.13245).

Two functions, for the two ways in which a model meets its keys:

- `causal_attention`: queries and keys are the same row of tokens (training, scoring). By a kernel of the platform, or
  block by block in XLA; no way ever holds the scores `[B, N, T, T]`, but cuDNN is given a mask `[B, 1, T, T]`.
- `cached_attention`: few queries against a cache whose slots are only partly filled (generation).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P

from jaxllm.layers.blockwise import QUERY_BLOCK, blockwise_attention
from jaxllm.layers.kernels import Case, cudnn_attention, splash_attention, why_not
from jaxllm.layers.masks import NEGATIVE, reach
from jaxllm.layers.ring import ring_attention
from jaxllm.layers.shards import platform

Backend = Literal["auto", "xla", "splash", "cudnn"]

KERNELS: dict[str, Backend] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
"""The kernel of each platform that has one."""


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    prefix_BT: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
) -> jax.Array:
    """Each token attends to itself and to earlier tokens of its segment; `[B, T, N, H]` in the type of `q`.

    Every (row, key-value head) pair is independent, so under a mesh the shards of batch and heads are computed where
    they lie. Rows that are cut over devices, and then laid `ring.zigzag`, are computed by `ring_attention`.

    Args:
        q_BTNH: queries.
        k_BTKH: keys.
        v_BTKH: values.
        segments_BT: a segment is a run of equal ids.
        prefix_BT: true where a token is seen by its whole segment, by earlier tokens too.
        window: limits the reach to the last `window` tokens.
        softcap: scores become `cap * tanh(scores / cap)` (2408.00118).
        backend: what computes it; `auto` is the platform's kernel where that can, and XLA elsewhere. Memory grows with
            T, but with its square for the mask that `cudnn_attention` needs.

    Raises:
        ValueError: a prefix in rows that are cut over devices.
    """
    spec = jax.typeof(q_BTNH).sharding.spec
    batch, tokens, heads, _ = spec or (None,) * 4
    if tokens is not None and jax.sharding.get_abstract_mesh().shape[tokens] > 1:
        if prefix_BT is not None:
            raise ValueError("a prefix mask cannot be applied to rows that are cut over devices (mesh.sequence)")
        attend = functools.partial(ring_attention, axis=tokens, window=window, softcap=softcap)
    else:
        attend = functools.partial(_whole_rows, window=window, softcap=softcap, backend=backend)
    inputs = (q_BTNH, k_BTKH, v_BTKH, segments_BT, *(() if prefix_BT is None else (prefix_BT,)))
    if not any(spec):
        return attend(*inputs)
    # Each input is taken as it is cut: a single key-value head carries no axis, not even one of size 1.
    return jax.shard_map(attend, out_specs=P(batch, tokens, heads, None), check_vma=False)(*inputs)


def _whole_rows(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    prefix_BT: jax.Array | None = None,
    *,
    window: int | None,
    softcap: float | None,
    backend: Backend,
) -> jax.Array:
    if backend == "auto":
        native = KERNELS.get(platform(), "xla")
        _, T, _, H = q_BTNH.shape
        case = Case(platform(), T, H, q_BTNH.dtype, softcap, prefix_BT is not None)
        backend = "xla" if native == "xla" or why_not(native, case) else native
    if backend == "splash":
        return splash_attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, window=window, softcap=softcap)
    limits, is_causal = reach(segments_BT, window, prefix_BT), prefix_BT is None
    if backend == "cudnn":
        return cudnn_attention(q_BTNH, k_BTKH, v_BTKH, limits, is_causal=is_causal)
    return blockwise_attention(q_BTNH, k_BTKH, v_BTKH, limits, is_causal=is_causal, window=window, softcap=softcap)


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
    # float32 for the reason given in `blockwise.scores`.
    s = rearrange(jnp.matmul(q, k_BKHS, preferred_element_type=jnp.float32), "B K (G T) S -> B K G T S", T=T)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    distance = slots_BT[:, None, None, :, None] - jnp.arange(S)
    visible = (distance >= 0) & (distance < (window or S))
    p = jax.nn.softmax(jnp.where(visible, s, NEGATIVE), axis=-1).astype(v_BKSH.dtype)
    out = jnp.matmul(rearrange(p, "B K G T S -> B K (G T) S"), v_BKSH)
    return rearrange(out, "B K (G T) H -> B T (K G) H", T=T).astype(q_BTNH.dtype)
