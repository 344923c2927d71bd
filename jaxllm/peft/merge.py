"""What is trained and what is not, as one tree that a model is called with; and adapters as a part of their base."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import RunConfig
from jaxllm.layers.linear import column_norms
from jaxllm.models.adapters import Update, updates
from jaxllm.models.table import Param


def joined(one: Tree, other: Tree) -> Tree:
    """All leaves of two nested dicts that have none in common; the first may be none at all."""
    both = dict(one or {})
    for name, node in other.items():
        assert name not in both or isinstance(node, Mapping), f"two leaves named '{name}'"
        both[name] = joined(both[name], node) if name in both else node
    return both


def effective(config: RunConfig, trained: Tree, frozen: Tree) -> Tree:
    """The parameters that the model of a run is called with."""
    return joined(frozen, scaled_updates(config, trained))


def scaled_updates(config: RunConfig, trained: Tree) -> Tree:
    """`trained`, with one `lora_scale` `[L, Q]` for each update: of its rank, its gate and its diagonal."""
    flat = flatten(trained)
    for update in updates(config.model, config.tuning):
        layers = update.kernel.shape[0]
        scale = jnp.full((layers, update.rank), update.scale, jnp.float32)
        if (diagonal := flat.pop(f"{update.module}/lora_e", None)) is not None:
            scale = scale * diagonal
        if (gate := flat.pop(f"{update.module}/lora_gate", None)) is not None:
            scale = scale * gate[:, None]
        flat[f"{update.module}/lora_scale"] = scale
    return nest(flat)


def folded(config: RunConfig, trained: Tree, base: Tree, dtype: Any = jnp.float32) -> Tree:
    """`base` with the low-rank updates of a run as a part of its kernels; `unfolded` is the inverse.

    What cannot be a part of a kernel stays a leaf of its own: virtual tokens, gated keys and values.

    Args:
        config: of the run.
        trained: what it has trained.
        base: all parameters of the model that it began with.
        dtype: of kernels with updates, whose sums are rounded to it once; none keeps that of the base. In bfloat16
            they are another model than what was trained.
    """
    return _with_kernels(
        config,
        trained,
        base,
        lambda update, kernel, leaves: _folded(update, kernel, leaves).astype(dtype or kernel.dtype),
    )


def folded_leaf(config: RunConfig, path: str, trained: Tree, x: jax.Array) -> jax.Array:
    """What `folded` makes of one parameter of the base."""
    leaves = flatten(scaled_updates(config, trained))
    x = leaves.get(path, x)
    update = next((u for u in updates(config.model, config.tuning) if path == f"{u.module}/kernel"), None)
    return x if update is None else _folded(update, x, _pop(update, leaves))


def unfolded(config: RunConfig, trained: Tree, merged: Tree) -> Tree:
    """The inverse of `folded` up to rounding, of a run that trained nothing but low-rank updates without DoRA's norms;
    kernels that had updates in float32.

    Args:
        config: of the run.
        trained: what it has trained.
        merged: what `folded` gave.
    """
    assert not config.tuning.also
    assert not config.tuning.lora.magnitudes
    return _with_kernels(
        config, trained, merged, lambda update, kernel, leaves: kernel.astype(jnp.float32) - change(update, leaves)
    )


def _with_kernels(
    config: RunConfig,
    trained: Tree,
    params: Tree,
    make: Callable[[Update, jax.Array, Mapping[str, Any]], jax.Array],
) -> Tree:
    """`params` with what else is trained, and with kernels that are made of theirs and the leaves of their updates."""
    own = flatten(params) | flatten(scaled_updates(config, trained))
    for update in updates(config.model, config.tuning):
        leaves, kernel = _pop(update, own), own[f"{update.module}/kernel"]
        own[f"{update.module}/kernel"] = make(update, kernel, leaves)
    return nest(own)


def _pop(update: Update, flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The leaves of one update, out of all."""
    return {name: flat.pop(f"{update.module}/{name}") for name in LEAVES if f"{update.module}/{name}" in flat}


LEAVES = ("lora_a", "lora_b", "lora_scale", "lora_magnitude")
"""Of an update, once it is scaled."""


def change(update: Update, leaves: Mapping[str, Any]) -> jax.Array:
    """The change of all layers' kernels `[L, *in, *out]` by an update, in float32; without what DoRA does to it."""
    L, Q = len(leaves["lora_a"]), update.rank
    a_LIQ, b_LQO = leaves["lora_a"].reshape(L, -1, Q), leaves["lora_b"].reshape(L, Q, -1)
    product = jnp.einsum("LIQ,LQO->LIO", a_LIQ * leaves["lora_scale"][:, None], b_LQO, precision="highest")
    return product.reshape(update.kernel.shape)


def _folded(update: Update, kernel: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    changed = kernel.astype(jnp.float32) + change(update, leaves)
    if "lora_magnitude" not in leaves:
        return changed
    reads = tuple(range(1, 1 + update.kernel.reads))
    norms = jnp.sqrt(jnp.sum(changed * changed, axis=reads, keepdims=True))
    return changed * (leaves["lora_magnitude"].reshape(norms.shape) / norms)


def magnitudes(leaf: Param, kernel: Any) -> jax.Array:
    """The norms `[L, *out]` in float32 of the columns of all layers' kernels, which DoRA begins with."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(1, 1 + leaf.reads))))


def magnitudes_of(update: Update, kernel: jax.Array, leaves: Mapping[str, Any]) -> jax.Array:
    """The norms `[L, *out]` of the columns of an updated kernel."""
    L, I, Q = len(kernel), update.inputs, update.rank
    a_LIQ, b_LQO = leaves["lora_a"].reshape(L, I, Q), leaves["lora_b"].reshape(L, Q, -1)
    norms = jax.vmap(column_norms)(kernel.reshape(L, I, -1), a_LIQ, b_LQO, leaves["lora_scale"])
    return norms.reshape(L, *update.kernel.shape[1 + update.kernel.reads :])
