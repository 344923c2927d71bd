"""One optimizer step as one jitted, donated function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig
from jaxllm.layers.shards import where_it_lies
from jaxllm.models.adapters import trained_table
from jaxllm.models.transformer import Transformer
from jaxllm.objectives.token_loss import token_loss
from jaxllm.peft.merge import joined, scaled_updates
from jaxllm.sharding.gather import Types, gather_at_use
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import differentiable, model_parameters, optimizer_specs, parameter_specs, summed
from jaxllm.train.optimizer import learning_rate
from jaxllm.train.state import State, on_arrays, run_optimizer

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def compute_dtype(config: RunConfig) -> Any:
    """The type of activations and products: `auto` is bfloat16 on accelerators and float32 on CPU."""
    if config.train.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.train.compute_dtype)


def travel_types(config: RunConfig) -> Types:
    """In which types parameters and gradients travel between devices."""
    return Types(gathered=compute_dtype(config), summed=jnp.dtype(config.train.reduce_dtype))


def make_model(config: RunConfig) -> Transformer:
    """The model of a run, in its compute type, gathering parameters where it uses them."""
    return Transformer(
        config.model,
        dtype=compute_dtype(config),
        remat=config.train.remat,
        attention=config.train.attention,
        update_dropout=config.tuning.lora.dropout,
        at_use=gather_at_use(travel_types(config)),
    )


def make_step(config: RunConfig, mesh: Mesh) -> Callable[..., tuple[State, Metrics]]:
    """`step(state, batch, frozen) -> (state, metrics)`; the state that goes in is consumed.

    `frozen` are the parameters that are not trained; left out where all are.

    The gradient is that of the mean loss over all weighted tokens of the batch, however it is cut in devices
    and microbatches. Metrics: `loss` (nats a token, without the z-loss; each weighs as it does in the gradient, so that
    with `objective.weigh = 'conversations'` it is the mean of their means), `grad_norm` before clipping,
    `learning_rate`, `tokens` (those with a weight), `finite` and `skipped`. A skipped step does not move the schedule.
    """
    optimizer, rate = run_optimizer(config), learning_rate(config.optimizer, config.train.steps)
    cut, stage = table_specs(mesh.shape, trained_table(config)), config.mesh.zero_stage

    to_device = functools.partial(jax.device_put, device=jax.memory.Space.Device)
    to_host = functools.partial(jax.device_put, device=jax.memory.Space.Host)

    def step(state: State, batch: Batch, frozen: Tree = None) -> tuple[State, Metrics]:
        grads, weight, nll = accumulated(config, state, batch, frozen)
        if config.train.offload_optimizer:
            state = state._replace(opt_state=on_arrays(to_device, state.opt_state))
        weight = jnp.where(weight > 0, weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, summed(grads, cut, stage, travel_types(config).summed))
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            params = jax.sharding.reshard(state.params, optimizer_specs(cut, stage))
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
            params = optax.apply_updates(params, updates)
            ema = None
            if config.train.ema_decay is not None:
                ema = optax.incremental_update(params, state.ema, 1.0 - config.train.ema_decay)
            params = jax.sharding.reshard(params, parameter_specs(cut, stage))
        finite = jnp.isfinite(nll) & jnp.isfinite(norm)
        new = State(state.step + 1, params, opt_state, ema, state.skipped)
        if config.train.skip_nonfinite:
            kept = state._replace(step=new.step, skipped=state.skipped + 1)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
        if config.train.offload_optimizer:
            new = new._replace(opt_state=on_arrays(to_host, new.opt_state))
        metrics = {
            "loss": nll / weight,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(rate(state.step - state.skipped), jnp.float32),
            "tokens": jnp.sum(batch["weights"] > 0, dtype=jnp.float32),
            "finite": finite,
            "skipped": new.skipped,
        }
        return new, metrics

    return _under(mesh, jax.jit(step, donate_argnums=0))


def accumulated(
    config: RunConfig, state: State, batch: Batch, frozen: Tree = None
) -> tuple[Tree, jax.Array, jax.Array]:
    """Gradients of the loss summed over the tokens of the batch, cut as they are kept from one microbatch to the next.

    Also the sum of weights, and the loss without the z-loss.
    """
    model, stage = make_model(config), config.mesh.zero_stage
    cut = table_specs(jax.sharding.get_abstract_mesh().shape, trained_table(config))
    drops = config.model.dropout > 0 or config.tuning.lora.dropout > 0
    parts = config.train.accumulate
    # A product over cut rows sums in its own type: to sum in another, it must leave its parts unsummed.
    late = parts > 1 or (stage == 0 and travel_types(config).summed != jnp.float32)
    key = named_key(jax.random.key(config.seed), "dropout", state.step)

    def loss(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        scaled, kept = (scaled_updates(config, tree) for tree in (params, state.params))
        params = joined(frozen, model_parameters(scaled, kept, stage))
        dropout_key = key if drops else None
        total, weight, metrics = token_loss(
            model, params, batch, dropout_key, chunk=config.train.loss_chunk, z_loss=config.train.z_loss
        )
        return total, (weight, metrics["nll"])

    def one(batch: Batch, key: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
        params = differentiable(state.params, cut, stage, late)
        grads, (weight, nll) = jax.grad(loss, has_aux=True)(params, batch, key)
        return grads, weight, nll

    if parts == 1:
        return one(batch, key)

    def add(sums: Any, xs: Any) -> tuple[Any, None]:
        part, index = xs
        return jax.tree.map(jnp.add, sums, one(part, named_key(key, index))), None

    microbatches = jax.tree.map(lambda x: _microbatches(x, parts), dict(batch))
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], microbatches), key)
    zeros = jax.tree.map(lambda x: jax.lax.full(x.shape, 0, x.dtype, sharding=x.sharding), shapes)
    return jax.lax.scan(add, zeros, (microbatches, jnp.arange(parts)))[0]


def _microbatches(x: jax.Array, parts: int) -> jax.Array:
    """`[B, T] -> [parts, B / parts, T]`; every device cuts its own rows, so that none move."""
    return where_it_lies(lambda x: rearrange(x, "(B parts) T -> parts B T", parts=parts), x, lambda cut: P(None, *cut))


def _under(mesh: Mesh, jitted: Any) -> Any:
    """`jitted`, called and lowered with `mesh` as the current one."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted(*args)

    def lower(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return jitted.lower(*args)

    call.lower = lower  # type: ignore[attr-defined]
    return call
