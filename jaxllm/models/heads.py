"""What reads final hidden states: the head over the vocabulary, pooling, and classification."""

import jax
import jax.numpy as jnp

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig
from jaxllm.layers.linear import scaled
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.norm import layer_norm


def head_kernel(params: Tree, config: TransformerConfig) -> tuple[jax.Array, str]:
    """The head's kernel and its axes: its own, `DV`, or the embedding, `VD`."""
    return (params["embedding"]["tokens"], "VD") if config.tied_embeddings else (params["head"]["kernel"], "DV")


def head_input(params: Tree, hidden_BTD: jax.Array, config: TransformerConfig) -> jax.Array:
    """What the head's kernel is multiplied with."""
    if config.head_transform:
        transform, norm = params["head"]["transform"], params["head"]["norm"]
        hidden_BTD = ACTIVATIONS[config.mlp](_dense(hidden_BTD, transform))
        hidden_BTD = layer_norm(hidden_BTD, norm["scale"], norm["bias"], config.norm_eps)
    return hidden_BTD if config.logit_scale == 1.0 else scaled(hidden_BTD, config.logit_scale)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`; without a cap, `x`."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def head_logits(params: Tree, hidden_BTD: jax.Array, config: TransformerConfig) -> jax.Array:
    """Logits `[..., V]` in float32. For few positions only; losses take the head chunk by chunk."""
    hidden_BTD = head_input(params, hidden_BTD, config)
    kernel, axes = head_kernel(params, config)
    # float32: a bfloat16 logit near 16 is a multiple of 1/8.
    logits = jnp.einsum(
        f"...D,{axes}->...V", hidden_BTD, kernel.astype(hidden_BTD.dtype), preferred_element_type=jnp.float32
    )
    return softcap(logits + params["head"]["bias"] if config.head_bias else logits, config.logit_softcap)


def mean_pooled(hidden_BTD: jax.Array, segments_BT: jax.Array, segments: int) -> jax.Array:
    """The mean hidden state of each segment 1, 2, ... of a row: `[B, segments, D]` in float32; 0 where there is none.

    Several texts in a row cost no padding; with one text a row, `segments` is 1 and padding has segment 0.
    """
    of_segment_BTS = jax.nn.one_hot(segments_BT - 1, segments)
    # float32: sums over all tokens of a text.
    sums = jnp.einsum("BTS,BTD->BSD", of_segment_BTS, hidden_BTD.astype(jnp.float32))
    return sums / jnp.maximum(jnp.sum(of_segment_BTS, axis=1), 1.0)[..., None]


def pooled(params: Tree, first_D: jax.Array) -> jax.Array:
    """A linear map and tanh over the hidden states `[..., D]` of first tokens (BERT)."""
    return jnp.tanh(_dense(first_D, params["pooler"]))


def label_logits(params: Tree, hidden_BTD: jax.Array, config: TransformerConfig) -> jax.Array:
    """Logits of the labels `[B, Z]` in float32; with one label, the value of a regression."""
    first_BD = hidden_BTD[:, 0]
    x = pooled(params, first_BD) if config.pooler else first_BD
    # float32: what a loss compares.
    return _dense(x.astype(jnp.float32), params["classifier"])


def _dense(x: jax.Array, params: Tree) -> jax.Array:
    return (jnp.einsum("...D,DW->...W", x, params["kernel"].astype(x.dtype)) + params["bias"]).astype(x.dtype)
