"""What adapters begin with, where that follows from their base: magnitudes, virtual tokens, their keys and values."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree, nest
from jaxllm.config import MeshConfig, RunConfig
from jaxllm.models.adapters import LEARNED_KEYS, updates
from jaxllm.models.cache import empty_cache
from jaxllm.models.transformer import Transformer, decode
from jaxllm.peft.merge import magnitudes
from jaxllm.quantization.blocks import plain
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import fetched


def starts(
    config: RunConfig, base: Mapping[str, Any], tokens: Sequence[Sequence[int]]
) -> dict[str, jax.Array | np.ndarray]:
    """The leaves of an adapter that begin with something of the base, by their paths, on devices or on the host.

    Args:
        config: of the run.
        base: all parameters of the model that it begins with, by their paths, as the run keeps them.
        tokens: those that each virtual token begins as the mean of; empty where all begin as uniform numbers.
    """
    found: dict[str, jax.Array | np.ndarray] = {}
    if config.tuning.lora.magnitudes:
        for update in updates(config.model, config.tuning):
            path = f"{update.module}/kernel"
            found[f"{update.module}/lora_magnitude"] = magnitudes(update.kernel, plain(base[path]))
    if tokens and config.tuning.method == "prompt":
        found["prompt/tokens"] = _means(base["embedding/tokens"], tokens)
    if tokens and config.tuning.method in LEARNED_KEYS:
        keys_and_values = _keys_and_values(config, nest(dict(base)), tokens)
        found |= dict(zip(LEARNED_KEYS[config.tuning.method], keys_and_values, strict=True))
    return found


def _means(table_VD: jax.Array, tokens: Sequence[Sequence[int]]) -> jax.Array:
    """The mean of the embeddings of each group of tokens, `[U, D]`."""
    widest = max(map(len, tokens))
    ids = jnp.asarray([[*row, *[row[0]] * (widest - len(row))] for row in tokens])
    weights = jnp.asarray([[1 / len(row)] * len(row) + [0.0] * (widest - len(row)) for row in tokens])
    table_VD = table_VD.astype(jnp.float32)
    return jnp.einsum("UWD,UW->UD", table_VD.at[ids].get(out_sharding=jax.typeof(ids).sharding), weights)


def _keys_and_values(config: RunConfig, base: Tree, tokens: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Those that each layer makes of the tokens as a text: `[L, U, K, H]`. One device of each process computes them."""
    model, U = Transformer(config.model, at_use=plain), len(tokens)
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])

    def run(params: Tree) -> tuple[jax.Array, jax.Array]:
        prompt = {"tokens": _means(params["embedding"]["tokens"], tokens)}
        ids = config.model.vocab_size + jnp.arange(U, dtype=jnp.int32)[None]
        empty = empty_cache(config.model, 1, U, jnp.float32)
        cache = decode(model, {**params, "prompt": prompt}, ids, cache=empty).cache
        assert cache is not None
        return jnp.einsum("LKHS->LSKH", cache.keys[:, 0]), jnp.einsum("LKSH->LSKH", cache.values[:, 0])

    whole = fetched(base, keep=True)
    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(run)(jax.device_put(whole, NamedSharding(mesh, P()))))
