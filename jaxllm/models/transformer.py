"""The transformer: a thin Linen module that declares the table's parameters, and functions that run its stacks.

    hidden, cache, router = Transformer(config).apply({"params": p}, tokens, positions, segments)
    logits = head_logits(p, hidden, config)

It returns hidden states; heads are functions (`models/heads.py`), so that a loss can take one chunk by chunk. How
parameters and batch are cut is no business of this file: `at_use` is called on each group of parameters just before it
is used, and whoever shards the run gathers there.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree, map_with_path, nest
from jaxllm.config import RopeScaling, TransformerConfig
from jaxllm.layers import blockwise, linear
from jaxllm.layers.attention import Backend, Mask
from jaxllm.layers.dropout import dropout
from jaxllm.layers.embedding import lookup, overlaid
from jaxllm.layers.relative import relative_bias, row_bias
from jaxllm.layers.rope import AS_TRAINED, Tables, rope_tables
from jaxllm.models.block import Context, Layer, Memory, Result, block, memory_keys, normalise
from jaxllm.models.cache import Cache, MemoryCache
from jaxllm.models.table import Param, group, parameter_table, windowed

INPUT = "layer input"
"""Names what the backward pass of a layer begins with under every policy; it stays on the device unless moved."""

NARROW = (blockwise.SAVED, linear.SAVED)
SAVEABLE = (*NARROW, linear.WIDE)


def _moved_to_host(*names: str) -> Any:
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


REMAT: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(*SAVEABLE),
    "attention": jax.checkpoint_policies.save_only_these_names(*NARROW),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": _moved_to_host(INPUT, *SAVEABLE),
    "offload_inputs": _moved_to_host(INPUT),
}
"""What a block's backward pass may find saved; `none` saves everything."""


def initial(key: jax.Array, table: dict[str, Param], specs: Mapping[str, P] = MappingProxyType({})) -> Tree:
    """Float32 parameters of a table as a nested dict; each leaf has a stream named by its path.

    Every device draws its own part of a leaf whose partition `specs` gives, and the whole of others.
    """

    def draw(path: str, leaf: Param) -> jax.Array:
        if leaf.std == 0:
            return jnp.full(leaf.shape, leaf.start, jnp.float32)
        law = jax.random.normal if leaf.law == "normal" else _uniform
        return leaf.std * law(named_key(key, path), leaf.shape, jnp.float32, out_sharding=specs.get(path))

    return nest({path: draw(path, leaf) for path, leaf in table.items()})


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, out_sharding: P | None) -> jax.Array:
    """Of mean 0 and variance 1."""
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5, out_sharding=out_sharding)


class Output(NamedTuple):
    """What a stack makes of tokens."""

    hidden: jax.Array
    """`[B, T, D]`, after the final norm."""
    cache: Cache | None = None
    """With these tokens added."""
    router: jax.Array | None = None
    """`[L, 2, E]`, what `balance_loss` takes; none without experts."""


class Transformer(nn.Module):
    """A decoder, an encoder, or both.

    Attributes:
        config: its shape.
        dtype: type of activations and products. Parameters are float32 whatever it is.
        remat: what the backward pass finds saved, `TrainConfig.remat`.
        attention: what computes it, `TrainConfig.attention`.
        update_dropout: dropped share of what low-rank updates read, where dropout is on.
        at_use: called on the parameters of the embedding, on each layer's inside the scan, on the final norm's and so
            on, for those that are used in their place.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: Backend = "auto"
    update_dropout: float = 0.0
    at_use: Callable[[Tree], Tree] = lambda params: params

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, *inputs: Any, **named: Any) -> Output:
        """`decode`, or `encode` for an encoder; an encoder-decoder takes `memory` from `encode`."""
        table = parameter_table(self.config)
        names = dict.fromkeys(path.split("/")[0] for path in table)
        params = {
            name: self.param(name, lambda key, name=name: initial(named_key(key, name), group(table, name)))
            for name in names
        }
        run = encode if self.config.architecture == "encoder" else decode
        return run(self, params, tokens_BT, *inputs, **named)


def decode(
    model: Transformer,
    params: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
    *,
    prefix_BT: jax.Array | None = None,
    memory: Memory | None = None,
) -> Output:
    """Runs the decoder, for leaves of any kind that `at_use` makes arrays of; of layers that are `per_layer` too.

    Args:
        model: is asked for its attributes only.
        params: all of them.
        tokens_BT: ids; from the size of the vocabulary on those of virtual tokens, where the parameters have some:
            first of those that are embedded, then of those that each layer has keys and values of.
        positions_BT: for RoPE or the learned table; 0, 1, ... (after the cached tokens) when left out.
        segments_BT: tokens attend within their segment only; one segment when left out. Not with a cache.
        cache: keys and values of earlier tokens, from `models/cache.py`.
        dropout_key: turns dropout on.
        prefix_BT: true where a token is seen by its whole segment. Not with a cache.
        memory: what an encoder made, for a decoder that attends to it and has none in its cache.
    """
    start = 0 if cache is None else cache.length[:, None]
    positions_BT, segments_BT = _places(tokens_BT, positions_BT, segments_BT, start)
    x_BTD = _embedded(model, "", params, tokens_BT, positions_BT, dropout_key=dropout_key)
    context = _context(model, "", params, positions_BT, Mask(segments_BT, True, prefix_BT), is_cached=cache is not None)
    embedded = model.at_use(params["prompt"])["tokens"].shape[-2] if "prompt" in params else 0
    context = context._replace(virtual_BT=jnp.maximum(_virtual(model, tokens_BT) - embedded, -1))
    if cache is not None:
        context = context._replace(cache_length_B=cache.length)
        if cache.memory is not None:
            context = context._replace(memory_length_B=cache.memory.length)
    x_BTD, result = _layers(model, "", params, x_BTD, context._replace(memory=memory), cache, dropout_key)
    if cache is not None:
        assert result.cached is not None
        keys, values = result.cached
        cache = cache._replace(keys=keys, values=values, length=cache.length + tokens_BT.shape[1])
    return Output(_final_norm(model, "", params, x_BTD), cache, result.router)


def encode(
    model: Transformer,
    params: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    *,
    types_BT: jax.Array | None = None,
) -> Output:
    """Runs the encoder, in which a token sees its whole segment. Args as for `decode`; `types_BT` are token types."""
    prefix = "encoder/" if model.config.architecture == "encoder_decoder" else ""
    positions_BT, segments_BT = _places(tokens_BT, positions_BT, segments_BT, 0)
    x_BTD = _embedded(model, prefix, params, tokens_BT, positions_BT, types_BT, dropout_key)
    context = _context(model, prefix, params, positions_BT, Mask(segments_BT, is_causal=False), is_cached=False)
    x_BTD, result = _layers(model, prefix, params, x_BTD, context, None, dropout_key)
    return Output(_final_norm(model, prefix, params, x_BTD), None, result.router)


def memory_cache(model: Transformer, params: Tree, hidden_BSD: jax.Array, lengths_B: jax.Array) -> MemoryCache:
    """What the decoder's layers, in either form, read of the hidden states of an encoder, whose rows begin with that
    many tokens."""

    def of_layer(layer: Tree) -> tuple[jax.Array, jax.Array]:
        k, v = memory_keys(model.at_use(layer), hidden_BSD)
        return rearrange(k, "B S K H -> B K H S"), rearrange(v, "B S K H -> B K S H")

    layers = params["layers"]
    if isinstance(layers, tuple):
        keys, values = zip(*map(of_layer, layers), strict=True)
    else:
        keys, values = jax.lax.map(of_layer, layers)
    return MemoryCache(keys, values, lengths_B)


def _at(params: Tree, prefix: str) -> Tree:
    """The parameters of the decoder, or of the `encoder/`."""
    return params[prefix.rstrip("/")] if prefix else params


def _virtual(model: Transformer, tokens_BT: jax.Array) -> jax.Array:
    """Which virtual token each is, or -1."""
    return jnp.maximum(tokens_BT - model.config.vocab_size, -1)


def _places(
    tokens_BT: jax.Array, positions_BT: jax.Array | None, segments_BT: jax.Array | None, start: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    if positions_BT is None:
        positions_BT = jnp.zeros_like(tokens_BT) + start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    return positions_BT, jnp.ones_like(tokens_BT) if segments_BT is None else segments_BT


def _embedded(
    model: Transformer,
    prefix: str,
    params: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    types_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    config = model.config
    with jax.named_scope("embedding"):
        shared = model.at_use(params["embedding"])
        own = model.at_use(params["encoder"].get("embedding", {})) if prefix else shared
        x_BTD = lookup(shared["tokens"], tokens_BT).astype(model.dtype)
        if "prompt" in params:
            table = model.at_use(params["prompt"])["tokens"]
            x_BTD = overlaid(x_BTD, table, _virtual(model, tokens_BT))
        if config.embedding_scale:
            x_BTD *= jnp.asarray(config.width**0.5, model.dtype)
        if config.positions == "learned":
            x_BTD += lookup(own["positions"], positions_BT + config.position_offset).astype(model.dtype)
        if config.token_types:
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD += lookup(shared["types"], types_BT).astype(model.dtype)
        if config.embedding_norm:
            x_BTD = normalise(config, own["norm"], x_BTD)
        if dropout_key is not None:
            rate = config.dropout if config.first_dropout is None else config.first_dropout
            x_BTD = dropout(x_BTD, rate, named_key(dropout_key, f"{prefix}embedding"))
    return x_BTD


def _context(
    model: Transformer, prefix: str, params: Tree, positions_BT: jax.Array, mask: Mask, is_cached: bool
) -> Context:
    """What follows from the configuration and the positions, for all layers."""
    config = model.config
    context = Context(mask, backend=model.attention, update_dropout=model.update_dropout)

    def tables(theta: float, scaling: RopeScaling) -> Tables:
        return rope_tables(positions_BT, config.head_dim, theta, config.rope_fraction, scaling)

    if config.positions == "rope":
        context = context._replace(rope=tables(config.rope_theta, config.rope_scaling))
        if config.local_rope_theta is not None:
            context = context._replace(local_rope=tables(config.local_rope_theta, AS_TRAINED))
    elif config.positions == "relative":
        table = model.at_use(_at(params, prefix)["relative"])["buckets"]
        limits: Any = {"is_causal": mask.is_causal, "farthest": config.relative_distance}
        if is_cached:
            context = context._replace(bias=lambda ahead: relative_bias(table, ahead, **limits))
        else:
            context = context._replace(bias_NX=row_bias(table, positions_BT.shape[1], **limits))
    return context


def _layers(
    model: Transformer,
    prefix: str,
    params: Tree,
    x_BTD: jax.Array,
    context: Context,
    cache: Cache | None,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, Result]:
    """The stream after all layers, and their results, stacked or in a tuple as the layers are."""
    config, group = model.config, f"{prefix}layers"
    stacked = _at(params, prefix)["layers"]
    depth = len(stacked) if isinstance(stacked, tuple) else jax.tree.leaves(stacked)[0].shape[0]
    has_window = windowed(config, depth)
    is_uniform = len(set(has_window)) == 1

    def body(x_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, Result]:
        layer = layer._replace(params=model.at_use(layer.params))
        if is_uniform:
            layer = layer._replace(has_window=has_window[0])
        if config.first_dropout is None:
            layer = layer._replace(dropout_rate=config.dropout)
        x_BTD = checkpoint_name(x_BTD, INPUT)
        return block(config, layer, x_BTD, context)

    if model.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[model.remat], prevent_cse=False)
    keys = None
    if dropout_key is not None:
        keys = jax.random.split(named_key(dropout_key, group), depth)
    rates = None if config.first_dropout is None else jnp.linspace(config.first_dropout, config.dropout, depth)
    memory = cache and cache.memory
    cached = (cache and cache.keys, cache and cache.values, memory and memory.keys, memory and memory.values)
    if isinstance(stacked, tuple):
        results = []
        for i, layer in enumerate(stacked):
            key = None if keys is None else keys[i]
            rate = None if rates is None else rates[i]
            x_BTD, result = body(x_BTD, Layer(layer, key, rate, has_window[i], *(c and c[i] for c in cached)))
            results.append(result)
        router = jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *(r.router for r in results))
        return x_BTD, Result(cache and tuple(zip(*(r.cached for r in results), strict=True)), router)
    places = None if is_uniform else jnp.asarray(has_window)
    return jax.lax.scan(body, x_BTD, Layer(stacked, keys, rates, places, *cached))


def _final_norm(model: Transformer, prefix: str, params: Tree, x_BTD: jax.Array) -> jax.Array:
    if model.config.norm_place == "post":
        return x_BTD
    with jax.named_scope("final_norm"):
        return normalise(model.config, model.at_use(_at(params, prefix)["final_norm"]), x_BTD)


def dtype_for_use(dtype: Any = None) -> Any:
    """In which generation holds weights: as it is asked for, or float32 on CPU and bfloat16 elsewhere."""
    return jnp.dtype(dtype or (jnp.float32 if jax.local_devices()[0].platform == "cpu" else jnp.bfloat16))


def cast_for_use(params: Tree, dtype: Any) -> Tree:
    """Matrices in `dtype` and vectors (norms, biases, gates) as they are: how generation holds weights."""
    vectors = ("scale", "bias", "/lora_gain", "/gate")
    return map_with_path(lambda path, x: x if path.endswith(vectors) else x.astype(dtype), params)


def per_layer(stacked: Tree) -> tuple[Tree, ...]:
    """A tree of one layer for each entry of the leading axis.

    With layers (and a cache's keys and values) in this form the model is a plain loop. Generation wants it: a scan
    copies each layer's weights and cache out of the stack and back at every token, three times the traffic.
    """
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(jax.tree.leaves(stacked)[0].shape[0]))
