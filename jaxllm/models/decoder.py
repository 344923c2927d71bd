"""The decoder-only transformer: a thin Linen module that declares the table's parameters and scans one block.

    hidden, cache = Decoder(config).apply({"params": p}, tokens, positions, segments)
    logits = head_logits(p, hidden, config)

It returns hidden states; the head is a function, so that a loss can take it chunk by chunk. How parameters
and batch are cut is no business of this file: `at_use` is called on each group of parameters just before it
is used, and whoever shards the run gathers there.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree, map_with_path, nest
from jaxllm.config import TransformerConfig
from jaxllm.layers import blockwise, linear
from jaxllm.layers.attention import Backend
from jaxllm.layers.dropout import dropout
from jaxllm.layers.embedding import lookup
from jaxllm.layers.rope import rope_tables
from jaxllm.models.block import Layer, block, normalise
from jaxllm.models.cache import Cache
from jaxllm.models.table import Param, decoder_table, group

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
        drawn = jax.random.normal(named_key(key, path), leaf.shape, jnp.float32, out_sharding=specs.get(path))
        return leaf.std * drawn

    return nest({path: draw(path, leaf) for path, leaf in table.items()})


class Decoder(nn.Module):
    """A decoder-only language model.

    Attributes:
        config: its shape.
        dtype: type of activations and products. Parameters are float32 whatever it is.
        remat: what the backward pass finds saved, `TrainConfig.remat`.
        attention: what computes it, `TrainConfig.attention`.
        at_use: `(group, parameters) -> parameters`, called on `embedding`, on each layer's slice of
            `layers` inside the scan, and on `final_norm`.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: Backend = "auto"
    at_use: Callable[[str, Tree], Tree] = lambda name, params: params

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Final hidden states `[B, T, D]` and the cache with these tokens added.

        Args:
            tokens_BT: ids.
            positions_BT: for RoPE or the learned table; 0, 1, ... (after the cached tokens) when left out.
            segments_BT: tokens attend within their segment only; one segment when left out. Not with a cache.
            cache: keys and values of earlier tokens, from `models/cache.py`.
            dropout_key: turns dropout on.
        """
        table = decoder_table(self.config)
        names = dict.fromkeys(path.split("/")[0] for path in table)
        params = {
            name: self.param(name, lambda key, name=name: initial(named_key(key, name), group(table, name)))
            for name in names
        }
        return forward(self, params, tokens_BT, positions_BT, segments_BT, cache, dropout_key)


def forward(
    model: Decoder,
    params: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Cache | None]:
    """What `model.apply({"params": params}, ...)` does, for leaves of any kind that `at_use` makes arrays of.

    Of layers that are `per_layer` too.
    """
    config = model.config
    if positions_BT is None:
        start = jnp.zeros_like(tokens_BT[:, :1]) if cache is None else cache.length[:, None]
        positions_BT = start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    if segments_BT is None:
        segments_BT = jnp.ones_like(tokens_BT)

    with jax.named_scope("embedding"):
        embedding = model.at_use("embedding", params["embedding"])
        x_BTD = lookup(embedding["tokens"], tokens_BT).astype(model.dtype)
        if config.embedding_scale:
            x_BTD *= jnp.asarray(config.width**0.5, model.dtype)
        if config.positions == "learned":
            x_BTD += lookup(embedding["positions"], positions_BT).astype(model.dtype)
        if dropout_key is not None:
            x_BTD = dropout(x_BTD, config.dropout, named_key(dropout_key, "embedding"))
    tables = rope_tables(positions_BT, config.head_dim, config.rope_theta) if config.positions == "rope" else None

    def body(x_BTD: jax.Array, layer: Layer) -> tuple[jax.Array, Any]:
        layer = layer._replace(params=model.at_use("layers", layer.params))
        x_BTD = checkpoint_name(x_BTD, INPUT)
        return block(config, layer, x_BTD, segments_BT, tables, cache and cache.length, model.attention)

    if model.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[model.remat], prevent_cse=False)
    keys = None
    if dropout_key is not None and config.dropout > 0:
        keys = jax.random.split(named_key(dropout_key, "layers"), config.layers)
    if cache is not None and isinstance(params["layers"], tuple):
        new = []
        for layer, *cached in zip(params["layers"], cache.keys, cache.values, strict=True):
            x_BTD, kv = body(x_BTD, Layer(layer, None, *cached))
            new.append(kv)
        kv = tuple(zip(*new, strict=True))
    else:
        layers = Layer(params["layers"], keys, cache and cache.keys, cache and cache.values)
        x_BTD, kv = jax.lax.scan(body, x_BTD, layers)
    if cache is not None:
        cache = Cache(keys=kv[0], values=kv[1], length=cache.length + tokens_BT.shape[1])
    with jax.named_scope("final_norm"):
        return normalise(config, model.at_use("final_norm", params["final_norm"]), x_BTD), cache


def head_kernel(params: Tree, config: TransformerConfig) -> jax.Array:
    """The head's kernel `[D, V]`: its own, or the transposed embedding."""
    return params["embedding"]["tokens"].T if config.tied_embeddings else params["head"]["kernel"]


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`; without a cap, `x`."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def head_logits(params: Tree, hidden_BTD: jax.Array, config: TransformerConfig) -> jax.Array:
    """Logits `[..., V]` in float32. For few positions only; losses take the head chunk by chunk."""
    # The embedding is contracted as it lies: jax 0.12 on CPU would transpose all of it for every token.
    kernel, axes = (params["embedding"]["tokens"], "VD") if config.tied_embeddings else (params["head"]["kernel"], "DV")
    # float32: a bfloat16 logit near 16 is a multiple of 1/8.
    logits = jnp.einsum(
        f"...D,{axes}->...V", hidden_BTD, kernel.astype(hidden_BTD.dtype), preferred_element_type=jnp.float32
    )
    return softcap(logits, config.logit_softcap)


def cast_for_use(params: Tree, dtype: Any) -> Tree:
    """Matrices in `dtype` and vectors (norms, biases) as they are: the form in which generation holds weights."""
    return map_with_path(lambda path, x: x if path.endswith(("scale", "bias")) else x.astype(dtype), params)


def per_layer(stacked: Tree) -> tuple[Tree, ...]:
    """A tree of one layer for each entry of the leading axis.

    With layers (and a cache's keys and values) in this form the model is a plain loop. Generation wants it: a scan
    copies each layer's weights and cache out of the stack and back at every token, three times the traffic.
    """
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(jax.tree.leaves(stacked)[0].shape[0]))
