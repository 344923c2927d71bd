"""What the kernels are asked for, and what they are not; cuDNN's is lowered, not run: there is no GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import jaxllm.layers.attention
from jaxllm.layers.attention import Mask, attention
from jaxllm.layers.kernels import Case, cudnn_attention, why_not
from jaxllm.layers.masks import reach


@pytest.fixture
def gpu(monkeypatch):
    """Programs are made as on a GPU, with a cuDNN that is there."""
    monkeypatch.setattr(jaxllm.layers.attention, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)


def rows(tokens, head_dim, heads=4):
    return jnp.asarray(np.random.default_rng(heads).normal(size=(2, tokens, heads, head_dim)), jnp.bfloat16)


def inputs(tokens, head_dim):
    segments = jnp.asarray(np.arange(tokens) > tokens // 3, jnp.int32)[None].repeat(2, axis=0)
    return rows(tokens, head_dim), rows(tokens, head_dim, 2), rows(tokens, head_dim, 2), segments


SHAPES = [(128, 64), (128, 128), (130, 8), (128, 60), (128, 136), (127, 64)]
"""Tokens and head_dim; the last three are beyond cuDNN."""


@pytest.mark.parametrize(("tokens", "head_dim"), SHAPES)
def test_what_jax_refuses_to_give_cudnn_is_known_before(gpu, tokens, head_dim):
    q, k, v, segments = inputs(tokens, head_dim)

    def loss(q):
        return cudnn_attention(q, k, v, reach(segments), is_causal=True).astype(jnp.float32).sum()

    reason = why_not("cudnn", Case("gpu", tokens, head_dim, q.dtype, None))
    if reason:
        assert str(tokens) in reason or str(head_dim) in reason
        with pytest.raises(NotImplementedError):
            jax.eval_shape(jax.grad(loss), q)
    else:
        jax.eval_shape(jax.grad(loss), q)


def program(fn, *args):
    return jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text().replace(r"\22", '"')


@pytest.mark.parametrize(("tokens", "head_dim"), [SHAPES[0], SHAPES[3], SHAPES[-1]])
def test_xla_attends_where_cudnn_cannot(gpu, tokens, head_dim):
    lowered = program(lambda q, k, v, segments: attention(q, k, v, Mask(segments)), *inputs(tokens, head_dim))
    assert ("__cudnn$fmha" in lowered) == ((tokens, head_dim) == SHAPES[0])


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("window", [None, 50])
def test_cudnn_may_leave_out_what_lies_after_a_query_unless_there_is_a_prefix(gpu, has_prefix, window):
    prefix = jnp.ones((2, 128), bool) if has_prefix else None

    def loss(q, k, v, segments):
        return attention(q, k, v, Mask(segments, prefix_BT=prefix), window=window).astype(jnp.float32).sum()

    lowered = program(jax.grad(loss, argnums=(0, 1, 2)), *inputs(128, 64))
    call = re.compile(r'@(__cudnn\$fmha\w+)\(.*"mask_type": "(\w+)".*"sliding_window_length": (\d+)')
    # The window is in the mask alone: older cuDNNs do not take both.
    asked = ("NO_MASK" if has_prefix else "CAUSAL", "0")
    assert call.findall(lowered) == [(f"__cudnn$fmhaScaleBiasSoftmax{which}", *asked) for which in ("", "Backward")]
