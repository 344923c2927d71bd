"""The training step of runs that train an adapter: the same however it is cut, at first the base, and of it nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm.common.trees import flatten, map_with_path, nest
from jaxllm.config import (
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    PromptConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    TransformerConfig,
    TuningConfig,
)
from jaxllm.models.adapters import frozen_table, trained_table
from jaxllm.models.transformer import initial
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import place
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import parameter_specs
from jaxllm.train.begin import kept
from jaxllm.train.state import abstract_state, initial_state
from jaxllm.train.step import make_step

MODEL = TransformerConfig(vocab_size=64, width=32, layers=2, heads=8, kv_heads=4, head_dim=8, ffn=48, max_positions=64)
WIDE = dataclasses.replace(MODEL, width=256, ffn=128)  # so that parts hold whole blocks
B, T, U = 8, 32, 3
LORA = LoraConfig(rank=4, dropout=0.1)
METHODS = {
    "lora": TuningConfig(method="lora", lora=LORA),
    "dora on int8": TuningConfig(method="lora", lora=LoraConfig(rank=4, magnitudes=True), base_dtype="int8"),
    "adalora": TuningConfig(method="adalora", lora=LoraConfig(rank=8)),  # at first 12, which fsdp 4 cuts
    "prompt and norms": TuningConfig(method="prompt", prompt=PromptConfig(length=U), also=("norm/scale",)),
    "prefix": TuningConfig(method="prefix", prompt=PromptConfig(length=U)),
    "hybrid on nf4": TuningConfig(method="hybrid", lora=LORA, prompt=PromptConfig(length=U), base_dtype="nf4"),
}
STAGES = {"lora": 2, "adalora": 1, "prompt and norms": 2, "prefix": 1}
"""Of ZeRO, besides stage 3."""


def run_of(tuning, **train):
    return RunConfig(
        base="base",
        model=WIDE if tuning.base_dtype in ("int8", "nf4") else MODEL,
        tuning=tuning,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
        train=TrainConfig(steps=20, batch_size=B, loss_chunk=64, **train),
    )


def batch(seed):
    rng = np.random.default_rng(seed)
    split = np.arange(T) < 11
    tokens = rng.integers(0, 64, (B, T)).astype(np.int32)
    tokens[:, :U] = tokens[:, 11 : 11 + U] = 64 + np.arange(U)
    positions = np.where(split, np.arange(T), np.arange(T) - 11).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": rng.integers(0, 64, (B, T)).astype(np.int32),
        "segments": np.tile(np.where(split, 1, 2).astype(np.int32), (B, 1)),
        "positions": np.tile(positions, (B, 1)),
        "weights": (rng.random((B, T)) < np.linspace(0.1, 1, B)[:, None]) * (positions >= U).astype(np.float32),
    }


def frozen_of(config, mesh):
    table = frozen_table(config)
    specs = parameter_specs(table_specs(mesh.shape, table), config.mesh.zero_stage)
    drawn = jax.jit(lambda: initial(jax.random.key(7), table))()
    placed = jax.tree.map(lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), drawn, specs)
    with jax.set_mesh(mesh):
        return nest({path: kept(config, path, x) for path, x in flatten(placed).items()})


def moved(params):
    """Away from the zeros and ones that many leaves start at."""
    random = np.random.default_rng(3)
    return map_with_path(
        lambda path, x: jax.device_put(
            np.asarray(x) + 0.1 * random.normal(size=x.shape).astype(np.float32), x.sharding
        ),
        params,
    )


def trained(config, start, sizes, devices, steps=3):
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes))
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    step, frozen = make_step(config, mesh), frozen_of(config, mesh)
    state = jax.tree.map(lambda x, as_cut: jax.device_put(x, as_cut.sharding), start, abstract_state(config, mesh))
    state = state._replace(params=moved(state.params))
    losses = []
    for k in range(steps):
        state, metrics = step(state, place(batch(k), mesh), frozen)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_is_trained_the_same_on_any_mesh(name):
    config = run_of(METHODS[name])
    start = jax.tree.map(np.asarray, initial_state(config, make_mesh(config.mesh, jax.devices()[:1])))
    one, losses = trained(config, start, {}, 1)
    lower = [{"data": 2, "fsdp": 4, "zero_stage": STAGES[name]}] if name in STAGES else []
    for sizes in ({"fsdp": 4, "tensor": 2}, *lower):
        other, others = trained(config, start, sizes, 8)
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        for path, x in flatten(one.params).items():
            np.testing.assert_allclose(flatten(other.params)[path], x, atol=2e-5, err_msg=path)
    assert set(flatten(one.params)) == set(trained_table(config))


@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_holds_the_trained_leaves_alone_and_an_even_share_of_all_but_vectors(name):
    config = run_of(METHODS[name])
    trained, averages = trained_table(config), 4 if config.tuning.method == "adalora" else 2
    vectors = {path for path, leaf in trained.items() if path.endswith(("scale", "gate", "magnitude", "lora_e"))}
    even = sum(leaf.size if path in vectors else leaf.size // 8 for path, leaf in trained.items())
    for stage in (1, 3):
        cut = dataclasses.replace(config, mesh=MeshConfig(fsdp=8, zero_stage=stage))
        state = abstract_state(cut, make_mesh(cut.mesh))
        arrays = [x for x in jax.tree.leaves(state.opt_state) if x.ndim and x.dtype == np.float32]
        assert sum(np.prod(x.shape) for x in arrays) == averages * sum(leaf.size for leaf in trained.values())
        assert sum(np.prod(x.sharding.shard_shape(x.shape)) for x in arrays) == averages * even


@pytest.mark.parametrize("name", METHODS)
def test_averages_are_cut_like_what_they_are_of(name):
    config = dataclasses.replace(run_of(METHODS[name]), mesh=MeshConfig(fsdp=4, tensor=2))
    state = abstract_state(config, make_mesh(config.mesh))
    held = flatten(state.opt_state)
    for path, x in flatten(state.params).items():
        cuts = {y.sharding.spec for place, y in held.items() if place.endswith(f"/{path}") and y.shape == x.shape}
        assert cuts == {x.sharding.spec}, path
