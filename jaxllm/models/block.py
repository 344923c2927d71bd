"""One transformer block. Families differ in the fields of `TransformerConfig`, never in code of their own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree
from jaxllm.config import GATED, TransformerConfig
from jaxllm.layers.attention import Backend, cached_attention, causal_attention
from jaxllm.layers.dropout import dropout
from jaxllm.layers.linear import WIDE, merge, project_all
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.norm import layer_norm, rms_norm
from jaxllm.layers.rope import apply_rope
from jaxllm.models.cache import write


class Layer(NamedTuple):
    """What one step of the scan over layers receives; the last three are none when unused."""

    params: Tree
    dropout_key: jax.Array | None
    cached_keys: jax.Array | None
    cached_values: jax.Array | None


def normalise(config: TransformerConfig, params: Tree, x: jax.Array) -> jax.Array:
    """The configured norm over the last axis."""
    if config.norm == "layer":
        return layer_norm(x, params["scale"], params["bias"], config.norm_eps)
    return rms_norm(x, params["scale"], config.norm_eps)


def block(
    config: TransformerConfig,
    layer: Layer,
    x_BTD: jax.Array,
    segments_BT: jax.Array,
    tables: tuple[jax.Array, jax.Array] | None,
    cache_length_B: jax.Array | None,
    backend: Backend = "auto",
) -> tuple[jax.Array, Any]:
    """`x + attention(norm(x))`, then `+ mlp(norm(x))`; returns the stream and this layer's `(keys, values)`."""
    params, key = layer.params, layer.dropout_key

    def drop(name: str, y: jax.Array) -> jax.Array:
        return dropout(y, config.dropout, None if key is None else named_key(key, name))

    with jax.named_scope("attention"):
        normed = normalise(config, params["attention_norm"], x_BTD)
        attended, kv = _attention(config, layer, normed, segments_BT, tables, cache_length_B, backend)
        attended = drop("attention", attended)
    with jax.named_scope("mlp"):
        middle = x_BTD if config.parallel_residual else x_BTD + attended
        out = drop("mlp", _mlp(config, params["mlp"], normalise(config, params["mlp_norm"], middle)))
        if config.parallel_residual:
            out += attended
    return middle + out, kv


def _attention(
    config: TransformerConfig,
    layer: Layer,
    x_BTD: jax.Array,
    segments_BT: jax.Array,
    tables: tuple[jax.Array, jax.Array] | None,
    cache_length_B: jax.Array | None,
    backend: Backend,
) -> tuple[jax.Array, Any]:
    params = layer.params["attention"]
    q, k, v = project_all(x_BTD, [params[name] for name in ("query", "key", "value")])
    if config.qk_norm:
        q = rms_norm(q, params["query_norm"]["scale"], config.norm_eps)
        k = rms_norm(k, params["key_norm"]["scale"], config.norm_eps)
    if tables is not None:
        q, k = apply_rope(q, tables), apply_rope(k, tables)
    limits: Any = {"window": config.sliding_window, "softcap": config.attention_softcap}
    if layer.cached_keys is None or layer.cached_values is None or cache_length_B is None:
        kv = None
        out = causal_attention(q, k, v, segments_BT, **limits, backend=backend)
    else:
        kv = write(layer.cached_keys, layer.cached_values, k, v, cache_length_B)
        slots_BT = cache_length_B[:, None] + jnp.arange(x_BTD.shape[1], dtype=jnp.int32)
        out = cached_attention(q, *kv, slots_BT, **limits)
    return merge(out, **params["output"]), kv


def _mlp(config: TransformerConfig, params: Tree, x_BTD: jax.Array) -> jax.Array:
    activation = ACTIVATIONS[config.mlp]
    names = ("gate", "up") if config.mlp in GATED else ("up",)
    first, *gated = project_all(x_BTD, [params[name] for name in names], name=WIDE)
    hidden = activation(first) * gated[0] if gated else activation(first)
    return merge(hidden, **params["down"])
