"""One transformer block. Families differ in the fields of `TransformerConfig`, never in code of their own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree
from jaxllm.config import GATED, TransformerConfig
from jaxllm.layers.attention import Backend, Mask, attention, cached_attention, gated_attention
from jaxllm.layers.dropout import dropout
from jaxllm.layers.embedding import overlaid
from jaxllm.layers.experts import expert_mlp
from jaxllm.layers.linear import WIDE, Drop, merge, project, project_all, scaled
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.norm import layer_norm, rms_norm
from jaxllm.layers.rope import Tables, apply_rope
from jaxllm.models.cache import write

Branch = Callable[[jax.Array], tuple[jax.Array, Any]]


class Memory(NamedTuple):
    """What a decoder attends to: the hidden states of an encoder."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array


class Context(NamedTuple):
    """What all layers of a stack share."""

    mask: Mask
    rope: Tables | None = None
    local_rope: Tables | None = None
    """Of layers with a window, where theirs are others."""
    bias_NX: jax.Array | None = None
    """Added to the scores of a whole row (`attention`)."""
    bias: Callable[[jax.Array], jax.Array] | None = None
    """The same by distance, for a cache (`cached_attention`)."""
    cache_length_B: jax.Array | None = None
    """Filled slots of the cache, where there is one."""
    memory: Memory | None = None
    memory_length_B: jax.Array | None = None
    """Filled slots of a memory that is cached in its place."""
    backend: Backend = "auto"
    virtual_BT: jax.Array | None = None
    """Which virtual token of `prefix_key` stands in a place; -1 where none does. None where there are none at all."""
    update_dropout: float = 0.0
    """Dropped share of what low-rank updates read."""


class Layer(NamedTuple):
    """What one layer receives; what is unused is none."""

    params: Tree
    dropout_key: jax.Array | None = None
    dropout_rate: Any = 0.0
    has_window: Any = False
    """A bool, or an array of one where a scan goes over layers with and without."""
    cached_keys: Any = None
    cached_values: Any = None
    memory_keys: Any = None
    memory_values: Any = None


class Result(NamedTuple):
    """What a layer leaves beside the stream."""

    cached: tuple[jax.Array, jax.Array] | None
    """Its keys and values."""
    router: jax.Array | None
    """`[2, E]`: the mean share of the tokens that each expert gets, and of the router's probability."""


def normalise(config: TransformerConfig, params: Tree, x: jax.Array, kind: str | None = None) -> jax.Array:
    """The configured norm over the last axes, or one of that kind."""
    scale = params["scale"] + 1.0 if config.zero_centred_norms else params["scale"]
    if (kind or config.norm) == "layer":
        return layer_norm(x, scale, params["bias"], config.norm_eps)
    return rms_norm(x, scale, config.norm_eps)


def block(config: TransformerConfig, layer: Layer, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, Result]:
    """The stream after one layer: each branch reads it and is added to it, with norms where `norm_place` says."""
    params = layer.params

    def drop(name: str, y: jax.Array) -> jax.Array:
        return dropout(y, layer.dropout_rate, _key(layer, name))

    def norm(name: str, y: jax.Array) -> jax.Array:
        return normalise(config, params[name], y)

    def with_branch(name: str, x: jax.Array, function: Branch) -> tuple[jax.Array, Any]:
        with jax.named_scope(name):
            y, rest = function(norm(f"{name}_norm", x) if config.norm_place in ("pre", "both") else x)
            if config.norm_place in ("both", "branch"):
                y = norm(f"{name}_post_norm" if config.norm_place == "both" else f"{name}_norm", y)
            x = x + drop(name, y)
            return norm(f"{name}_norm", x) if config.norm_place == "post" else x, rest

    attend = functools.partial(_attention, config, layer, context)
    feed_forward = functools.partial(_mlp, config, layer, context)
    if config.parallel_residual:
        with jax.named_scope("attention"):
            normed = norm("attention_norm", x_BTD)
            attended, cached = attend(normed)
        with jax.named_scope("mlp"):
            made, router = feed_forward(normed if config.shared_norm else norm("mlp_norm", x_BTD))
            return x_BTD + (drop("mlp", made) + drop("attention", attended)), Result(cached, router)
    x_BTD, cached = with_branch("attention", x_BTD, attend)
    if "cross_attention" in params:
        x_BTD, _ = with_branch("cross_attention", x_BTD, functools.partial(_cross_attention, config, layer, context))
    x_BTD, router = with_branch("mlp", x_BTD, feed_forward)
    return x_BTD, Result(cached, router)


def _key(layer: Layer, name: str) -> jax.Array | None:
    return None if layer.dropout_key is None else named_key(layer.dropout_key, name)


def _dropped(layer: Layer, context: Context, name: str) -> Drop:
    """What low-rank updates read of the inputs of that name."""
    return lambda x: dropout(x, context.update_dropout, _key(layer, f"{name} update"))


def _attention(
    config: TransformerConfig, layer: Layer, context: Context, x_BTD: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    params = layer.params["attention"]
    drop = _dropped(layer, context, "attention")
    q, k, v = project_all(x_BTD, [params[name] for name in ("query", "key", "value")], drop=drop)
    if config.qk_norm != "none":
        q = normalise(config, params["query_norm"], q, "rms")
        k = normalise(config, params["key_norm"], k, "rms")
    if context.rope is not None:
        tables = _of_layer(layer.has_window, context.local_rope, context.rope)
        q, k = apply_rope(q, tables), apply_rope(k, tables)
    if context.virtual_BT is not None and "prefix_key" in params:
        k = overlaid(k, params["prefix_key"], context.virtual_BT)
        v = overlaid(v, params["prefix_value"], context.virtual_BT)
    q, cached = _scaled(config, q), None
    start_B = context.cache_length_B
    if start_B is not None:
        cached = write(layer.cached_keys, layer.cached_values, k, v, start_B)

    def within(window: int | None) -> jax.Array:
        limits: Any = {"window": window, "softcap": config.attention_softcap}
        if cached is None or start_B is None:
            return attention(q, k, v, context.mask, **limits, bias_NX=context.bias_NX, backend=context.backend)
        slots_BT = start_B[:, None] + jnp.arange(x_BTD.shape[1], dtype=jnp.int32)
        return cached_attention(q, *cached, slots_BT, **limits, bias=context.bias)

    if isinstance(layer.has_window, bool):
        out = within(config.sliding_window if layer.has_window else None)
    else:
        out = jax.lax.cond(layer.has_window, lambda: within(config.sliding_window), lambda: within(None))
    if "gate" in params:
        learned = params["gated_key"], params["gated_value"], params["gate"], params.get("gated_there")
        out += gated_attention(q, *learned, softcap=config.attention_softcap)
    return merge(out, **params["output"], drop=_dropped(layer, context, "attention output")), cached


def _of_layer(has_window: jax.Array | bool, local: Tables | None, everywhere: Tables) -> Tables:
    """The rotation of layers with a window, or that of others."""
    if local is None:
        return everywhere
    if isinstance(has_window, bool):
        return local if has_window else everywhere
    return jax.tree.map(lambda a, b: jnp.where(has_window, a, b), local, everywhere)


def _scaled(config: TransformerConfig, q: jax.Array) -> jax.Array:
    """Queries, so that attention, which divides by the root of `head_dim`, multiplies by `attention_scale`."""
    if config.attention_scale is None:
        return q
    return scaled(q, config.attention_scale * config.head_dim**0.5)


def memory_keys(params: Tree, hidden_BSD: jax.Array, drop: Drop = lambda x: x) -> list[jax.Array]:
    """Keys and values `[B, S, K, H]` of the memory, for the cross-attention of one layer."""
    return project_all(hidden_BSD, [params["cross_attention"][name] for name in ("key", "value")], drop=drop)


def _cross_attention(
    config: TransformerConfig, layer: Layer, context: Context, x_BTD: jax.Array
) -> tuple[jax.Array, None]:
    params = layer.params["cross_attention"]
    drop = _dropped(layer, context, "cross_attention")
    q = _scaled(config, project(x_BTD, **params["query"], dropped=drop(x_BTD)))
    if context.memory is not None:
        drop_memory = _dropped(layer, context, "cross_attention memory")
        k, v = memory_keys(layer.params, context.memory.hidden_BSD, drop_memory)
        mask = Mask(context.mask.segments_BT, is_causal=False, key_segments_BS=context.memory.segments_BS)
        out = attention(q, k, v, mask, softcap=config.attention_softcap, backend=context.backend)
    else:
        assert context.memory_length_B is not None
        last_BT = jnp.broadcast_to(context.memory_length_B[:, None] - 1, x_BTD.shape[:2])
        out = cached_attention(q, layer.memory_keys, layer.memory_values, last_BT, softcap=config.attention_softcap)
    return merge(out, **params["output"], drop=_dropped(layer, context, "cross_attention output")), None


def _mlp(
    config: TransformerConfig, layer: Layer, context: Context, x_BTD: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    activation, params = ACTIVATIONS[config.mlp], layer.params["mlp"]
    if config.experts:
        return expert_mlp(x_BTD, params, activation, config.experts_per_token, context.mask.segments_BT)
    names = ("gate", "up") if config.mlp in GATED else ("up",)
    drop = _dropped(layer, context, "mlp")
    first, *gated = project_all(x_BTD, [params[name] for name in names], name=WIDE, drop=drop)
    hidden = activation(first) * gated[0] if gated else activation(first)
    return merge(hidden, **params["down"], drop=_dropped(layer, context, "mlp down")), None
