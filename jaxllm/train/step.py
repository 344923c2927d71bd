"""One optimizer step as one jitted, donated function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig
from jaxllm.layers.shards import along_batch
from jaxllm.models.decoder import Decoder
from jaxllm.models.table import decoder_table
from jaxllm.objectives.causal_lm import causal_lm_loss
from jaxllm.sharding.rules import gather_at_use
from jaxllm.train.optimizer import learning_rate
from jaxllm.train.state import State, run_optimizer

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def compute_dtype(config: RunConfig) -> Any:
    """The type of activations and products: `auto` is bfloat16 on accelerators and float32 on CPU."""
    if config.train.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.train.compute_dtype)


def make_model(config: RunConfig) -> Decoder:
    """The model of a run, in its compute type, gathering parameters where it uses them."""
    return Decoder(
        config.model,
        dtype=compute_dtype(config),
        remat=config.train.remat,
        at_use=gather_at_use(decoder_table(config.model)),
    )


def make_step(config: RunConfig, mesh: Mesh) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """`step(state, batch) -> (state, metrics)`; the state that goes in is consumed.

    The gradient is that of the mean loss over all weighted tokens of the batch, however it is cut in devices
    and microbatches. Metrics: `loss` (nats a token, without the z-loss), `grad_norm` before clipping,
    `learning_rate`, `tokens` (the sum of weights), `finite` and `skipped`. A skipped step does not move the schedule.
    """
    model, optimizer = make_model(config), run_optimizer(config)
    rate = learning_rate(config.optimizer, config.train.steps)

    def loss(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        dropout_key = key if config.model.dropout > 0 else None
        total, weight, metrics = causal_lm_loss(
            model, params, batch, dropout_key, chunk=config.train.loss_chunk, z_loss=config.train.z_loss
        )
        return total, (weight, metrics["nll"])

    def gradients(params: Tree, batch: Batch, key: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
        one = jax.grad(loss, has_aux=True)
        if config.train.accumulate == 1:
            grads, (weight, nll) = one(params, batch, key)
            return grads, weight, nll

        def add(sums: Any, xs: Any) -> tuple[Any, None]:
            part, index = xs
            grads, aux = one(params, part, named_key(key, index))
            return jax.tree.map(jnp.add, sums, (grads, *aux)), None

        zero = jnp.zeros((), jnp.float32)
        parts = jax.tree.map(lambda x: _microbatches(x, config.train.accumulate), dict(batch))
        start = (jax.tree.map(jnp.zeros_like, params), zero, zero)
        return jax.lax.scan(add, start, (parts, jnp.arange(config.train.accumulate)))[0]

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = named_key(jax.random.key(config.seed), "dropout", state.step)
        grads, weight, nll = gradients(state.params, batch, key)
        weight = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = None
            if config.train.ema_decay is not None:
                ema = optax.incremental_update(params, state.ema, 1.0 - config.train.ema_decay)
        finite = jnp.isfinite(nll) & jnp.isfinite(norm)
        new = State(state.step + 1, params, opt_state, ema, state.skipped)
        if config.train.skip_nonfinite:
            kept = state._replace(step=new.step, skipped=state.skipped + 1)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
        metrics = {
            "loss": nll / weight,
            "grad_norm": norm,
            "learning_rate": jnp.asarray(rate(state.step - state.skipped), jnp.float32),
            "tokens": weight,
            "finite": finite,
            "skipped": new.skipped,
        }
        return new, metrics

    return _under(mesh, jax.jit(step, donate_argnums=0))


def _microbatches(x: jax.Array, parts: int) -> jax.Array:
    """`[B, T] -> [parts, B / parts, T]`; every device cuts its own rows, so that none move."""
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    return jnp.swapaxes(jax.lax.reshape(x, shape, out_sharding=along_batch(x, len(shape))), 0, 1)


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
