"""Optimizers and schedules, composed from optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.common.trees import Tree, map_with_path, nest
from jaxllm.config import OptimizerConfig
from jaxllm.models.table import Param


def learning_rate(config: OptimizerConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Rate at each step: linear warm-up from 0 to the peak, then the configured shape over the other steps."""
    shape, peak = config.schedule, config.learning_rate if peak is None else peak
    rest = max(1, steps - shape.warmup_steps)
    low = peak * shape.final_fraction
    warmup = optax.linear_schedule(0.0, peak, shape.warmup_steps)
    if shape.kind == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=shape.final_fraction)
    elif shape.kind == "linear":
        after = optax.linear_schedule(peak, low, rest)
    elif shape.kind == "wsd":
        falling = max(1, round(steps * shape.decay_fraction))
        after = optax.linear_schedule(peak, low, falling, transition_begin=max(0, rest - falling))
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, after], [shape.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, steps: int, table: dict[str, Param]
) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, scale, decay the matrices, multiply by the rate.

    Decay applies to the leaves for which `Param.is_matrix` holds: no embedding, norm or bias. Muon moves and decays
    those of the blocks only: not the head.
    """
    matrices = nest({path: leaf.is_matrix for path, leaf in table.items()})
    if config.kind == "muon":
        update = _muon(config, steps, table)
    else:
        update = optax.chain(
            _scale(config, table),
            optax.add_decayed_weights(config.weight_decay, mask=matrices),
            optax.scale_by_learning_rate(learning_rate(config, steps)),
        )
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, update)


def _scale(config: OptimizerConfig, table: dict[str, Param]) -> optax.GradientTransformation:
    if config.kind == "lion":
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.momentum_dtype)
    if config.kind == "adafactor":  # 1804.04235 with its update clipping, steps relative to the parameter's size
        return optax.chain(optax.scale_by_factored_rms(), _clipped_matrices(table, config.parameter_scaling))
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.momentum_dtype)


def _clipped_matrices(table: dict[str, Param], is_relative: bool) -> optax.GradientTransformation:
    """Each matrix's update clipped to a root mean square of 1, and multiplied by the matrix's own, at least 1e-3, if
    steps are relative to that.

    `optax.clip_by_block_rms` and `scale_by_param_block_rms` do so for whole leaves, in which all layers are stacked.
    """

    def leaf(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        axes = tuple(range(1 if table[path].axes[0] == "L" else 0, update.ndim))

        def rms(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.mean(x * x, axes, keepdims=True))

        clipped = update / jnp.maximum(1.0, rms(update))
        return clipped * jnp.maximum(1e-3, rms(param)) if is_relative else clipped

    return optax.stateless(lambda updates, params: map_with_path(leaf, updates, params))


def _muon(config: OptimizerConfig, steps: int, table: dict[str, Param]) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks; Nesterov's AdamW, without decay, for embeddings, head, norms and biases.

    Muon's update is scaled to the root mean square 0.2 that AdamW's has (2502.16982): one rate serves both.
    """
    muon = optax.contrib.muon(
        learning_rate(config, steps),
        beta=config.b1,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b2=config.b2,
        adam_learning_rate=learning_rate(config, steps, config.adam_learning_rate),
        muon_weight_dimension_numbers=nest({path: _dimensions(leaf) for path, leaf in table.items()}),
        consistent_rms=0.2,
        mu_dtype=config.momentum_dtype,
    )
    return optax.GradientTransformation(muon.init, _partitioned_by_compiler(muon.update))


def _partitioned_by_compiler(update: Callable[..., Any]) -> Callable[..., Any]:
    """`update` under automatic axes: Newton-Schulz multiplies cut matrices, and optax states no sharding there."""

    def call(grads: Tree, state: Any, params: Tree) -> Any:
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (grads, state))
        if jax.tree.leaves(shardings)[0].mesh.empty:
            return update(grads, state, params)
        return jax.sharding.auto_axes(update, out_sharding=shardings)(grads, state, params)

    return call


def _dimensions(leaf: Param) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a block's matrix are summed over and which it writes; none for what AdamW moves."""
    if not leaf.is_matrix or leaf.axes[0] != "L" or "U" in leaf.axes:
        return None
    rest = tuple(range(1, len(leaf.axes)))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=rest[: leaf.reads], output_axis=rest[leaf.reads :])
