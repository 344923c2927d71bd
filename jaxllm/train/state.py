"""The state of a run: made abstractly, then born already cut along the mesh."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.rng import named_key
from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import RunConfig
from jaxllm.models.adapters import trained_table
from jaxllm.models.transformer import initial
from jaxllm.peft.adaptive import adaptive_ranks
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import optimizer_specs, parameter_specs
from jaxllm.train.optimizer import make_optimizer


class State(NamedTuple):
    """Everything that a step changes and a checkpoint holds, cut as the run's ZeRO stage says (`sharding/zero.py`)."""

    step: jax.Array
    """Optimizer steps done, skipped ones included; int32."""
    params: Tree
    """What is trained (`models/adapters.py`), float32."""
    opt_state: Any
    """optax's."""
    ema: Tree | None
    """Moving average of the parameters, or none."""
    skipped: jax.Array
    """Steps that were not finite and left everything as it was; int32."""


def run_optimizer(config: RunConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run."""
    optimizer = make_optimizer(config.optimizer, config.train.steps, trained_table(config))
    return adaptive_ranks(config, optimizer) if config.tuning.method == "adalora" else optimizer


def _create(config: RunConfig, key: jax.Array, given: Mapping[str, jax.Array]) -> State:
    """With parameters that are `given` by their paths, and others drawn."""
    table = trained_table(config)
    stage = config.mesh.zero_stage
    specs = table_specs(jax.sharding.get_abstract_mesh().shape, table)
    cut = optimizer_specs(specs, stage)
    drawn = initial(named_key(key, "params"), {p: x for p, x in table.items() if p not in given}, flatten(cut))
    optimized = jax.sharding.reshard(nest({path: {**flatten(drawn), **given}[path] for path in table}), cut)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=jax.sharding.reshard(optimized, parameter_specs(specs, stage)),
        opt_state=run_optimizer(config).init(optimized),
        ema=None if config.train.ema_decay is None else jax.tree.map(jnp.copy, optimized),
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_state(config: RunConfig, mesh: Mesh) -> State:
    """Shapes, types and shardings of the state, without a byte of it.

    Under explicit axes zeros made like a parameter are cut like it, so that the optimizer's state follows.
    """
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: _create(config, jax.random.key(config.seed), {}))

    def place(x: jax.ShapeDtypeStruct, memory: str = "device") -> jax.ShapeDtypeStruct:
        spec = P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec, memory_kind=memory))

    placed = jax.tree.map(place, shapes)
    if not config.train.offload_optimizer:
        return placed
    return placed._replace(opt_state=on_arrays(lambda x: place(x, "pinned_host"), placed.opt_state))


def on_arrays(move: Callable[[Any], Any], opt_state: Any) -> Any:
    """The optimizer's state with its arrays moved; its counters stay where they are."""
    return jax.tree.map(lambda x: move(x) if x.ndim else x, opt_state)


def initial_state(config: RunConfig, mesh: Mesh, given: Mapping[str, jax.Array] = MappingProxyType({})) -> State:
    """The state at step 0, a function of the configuration, its seed and what is `given` alone, whatever the mesh.

    Given are parameters by their paths, in float32, in place of those that would be drawn; they are consumed.

    To the bit, except that jax 0.12 on CPU rounds a few numbers differently where a shard's rows are narrower than 16:
    its scalar and its vector code of the inverse error function are not the same.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key, given: _create(config, key, given), out_shardings=shardings, donate_argnums=1)
        return make(jax.random.key(config.seed), dict(given))
