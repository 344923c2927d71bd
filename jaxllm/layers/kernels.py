"""Attention by the kernels of a platform: splash attention on TPU (Pallas), flash attention of cuDNN on GPU.

`why_not` says which cases they cannot compute.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.layers.blockwise import SAVED
from jaxllm.layers.masks import Reach
from jaxllm.layers.shards import platform

LANES = 128
"""Tokens that a tile of the TPU holds; a block of splash attention is a multiple of them."""

LARGEST_BLOCK = 512
"""Queries, and keys, of one block: beyond it the scores of a block leave the TPU's registers."""


BLOCKS = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
"""Of splash attention: queries and keys in the forward pass, in the gradient of keys and in that of queries."""


CUDNN_WIDEST = 128
"""The widest head that cuDNN takes on every GPU that it takes at all; from Hopper on it takes 256."""


class Case(NamedTuple):
    """What decides whether a kernel can compute an attention."""

    platform: str
    tokens: int
    """Of a row."""
    head_dim: int
    dtype: Any
    softcap: float | None
    has_other_mask: bool = False
    """A prefix, or keys of other rows."""
    has_bias: bool = False


def why_not(backend: str, case: Case) -> str:
    """Why the kernel `splash` or `cudnn` cannot compute a case, in a few words; nothing where it can."""
    if backend == "splash":
        if case.has_other_mask:
            return "splash attention takes no prefix, and no other rows"
        if case.has_bias:
            return "splash attention takes no bias (model.positions = 'relative')"
        return f"rows of {case.tokens} tokens are no multiple of {LANES}" if case.tokens % LANES else ""
    if case.platform not in ("gpu", "cuda"):
        return f"cuDNN runs on GPU, and this is {case.platform}"
    if case.has_bias:
        return "cuDNN is given no bias (model.positions = 'relative')"
    if case.softcap is not None:
        return "cuDNN takes no soft-cap (model.attention_softcap)"
    if jnp.dtype(case.dtype).itemsize != 2:
        return f"cuDNN takes 16-bit types, and this is {case.dtype}"
    if case.head_dim % 8:
        return f"heads of {case.head_dim} (model.head_dim) are no multiple of 8"
    if case.head_dim > CUDNN_WIDEST:
        return f"heads of {case.head_dim} (model.head_dim) are wider than {CUDNN_WIDEST}"
    return f"rows of {case.tokens} tokens are not even" if case.tokens % 2 else ""


def splash_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    is_causal: bool,
    window: int | None,
    softcap: float | None,
) -> jax.Array:
    """`[B, T, N, H]` by jax's Pallas kernel for TPU (elsewhere by its interpreter, which is slow)."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    _, T, N, H = q_BTNH.shape
    kernel = _splash_kernel(T, N, _splash_mask(T, is_causal, window), softcap, platform() != "tpu")
    ids = _segment_numbers(segments_BT)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH * H**-0.5, k_BTKH, v_BTKH))
    out: Any = jax.vmap(kernel)(q, k, v, SegmentIds(ids, ids))
    return jnp.swapaxes(out, 1, 2).astype(q_BTNH.dtype)


def _segment_numbers(segments_BT: jax.Array) -> jax.Array:
    """Each run of equal ids by its own number: the kernel compares ids, wherever they stand."""
    return jnp.cumsum(segments_BT != jnp.roll(segments_BT, 1, axis=1), axis=1, dtype=jnp.int32)


def _splash_mask(T: int, is_causal: bool, window: int | None) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if window is not None:
        return splash.LocalMask((T, T), (window - 1, 0 if is_causal else None), 0)
    return splash.CausalMask((T, T)) if is_causal else splash.FullMask((T, T))


def _splash_kernel(T: int, heads: int, mask: Any, softcap: float | None, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(size for size in range(min(LARGEST_BLOCK, T), 0, -LANES) if T % size == 0)
    sizes: dict[str, Any] = {f"block_{name}": block for name in BLOCKS}
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**sizes),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )


def cudnn_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    limits: Reach,
    *,
    is_causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`[B, T, N, H]` by `jax.nn.dot_product_attention`, which takes the segments as a mask `[B, 1, T, T]`.

    That mask, 2 bytes an element (on jax 0.10 its gradient too), is the price of packed rows: for cuDNN's own form of
    them jax has no public function, and it takes a bound on the segments of a row and a GPU from Hopper on. Blocks
    after a query are left out where `is_causal` (no query sees past itself). Those before a window are computed: cuDNN
    takes no window of its own beside a mask before version 9.10.2.
    """
    place = jnp.arange(q_BTNH.shape[1])
    mask_BTS = (place >= limits.first_BT[..., None]) & (place <= limits.last_BT[..., None])
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask_BTS[:, None], is_causal=is_causal, implementation=implementation
    )
