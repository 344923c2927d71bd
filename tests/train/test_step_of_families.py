"""One result, however it is cut, for what models of other families have: windows, experts, both stacks, their heads."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.config import MeshConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, TransformerConfig
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import place
from jaxllm.train.state import initial_state
from jaxllm.train.step import make_step
from tests.quick import QUICK

BASE = TransformerConfig(
    vocab_size=64,
    width=32,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    max_positions=64,
    init_std=0.2,
)
BERT = replace(
    BASE,
    architecture="encoder",
    norm="layer",
    norm_place="post",
    embedding_norm=True,
    mlp="gelu_erf",
    positions="learned",
    attention_bias="all",
    mlp_bias=True,
    head_transform=True,
    head_bias=True,
    token_types=2,
)
MODELS = {
    "gemma": replace(
        BASE,
        norm_place="both",
        zero_centred_norms=True,
        sliding_window=5,
        global_every=2,
        local_rope_theta=100.0,
        qk_norm="head",
        attention_softcap=5.0,
    ),
    "mixtral": replace(BASE, experts=4, router_loss=0.1),
    "bert": BERT,
    "t5": replace(  # scores are not divided: with a wider start they would be chaotic
        BASE,
        architecture="encoder_decoder",
        encoder_layers=3,
        positions="relative",
        mlp="geglu",
        attention_scale=1.0,
        init_std=0.1,
    ),
    "bart": replace(
        BERT,
        architecture="encoder_decoder",
        layers=2,
        encoder_layers=3,
        head_transform=False,
        token_types=0,
        position_offset=2,
    ),
}
MESHES = {
    "all axes, stage 3": {"data": 2, "fsdp": 2, "tensor": 2, "zero_stage": 3},
    "replicas, stage 1": {"data": 4, "fsdp": 2, "zero_stage": 1},
}
B, T, S = 16, 24, 32


def batch_of(config: TransformerConfig, seed: int) -> dict[str, np.ndarray]:
    """Two documents a row, and padding."""
    random = np.random.default_rng(seed)

    def rows(name: str, *lengths: int) -> dict[str, np.ndarray]:
        segments, places = np.repeat([1, 2, 0], lengths), np.concatenate([np.arange(n) for n in lengths])
        tokens = random.integers(0, 64, (B, sum(lengths)))
        arrays = {"tokens": tokens, "segments": np.tile(segments, (B, 1)), "positions": np.tile(places, (B, 1))}
        return {f"{name}{key}": array.astype(np.int32) for key, array in arrays.items()}

    batch = rows("", 10, 10, 4)
    if config.architecture == "encoder_decoder":
        batch |= rows("encoder_", 12, 14, 6)
    batch["targets"] = random.integers(0, 64, (B, T)).astype(np.int32)
    return {**batch, "weights": ((batch["segments"] > 0) * (random.random((B, T)) < 0.7)).astype(np.float32)}


def losses_and_norms(model: TransformerConfig, devices: int, **sizes: Any) -> np.ndarray:
    """Of two steps."""
    config = RunConfig(
        model=model,
        mesh=MeshConfig(**sizes),
        train=TrainConfig(steps=10, batch_size=B, remat="dots", loss_chunk=64),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=0)),
    )
    mesh, found = make_mesh(config.mesh, jax.devices()[:devices]), []
    state = initial_state(config, mesh)
    batches = [place(batch_of(model, seed), mesh) for seed in (0, 1)]
    step = make_step(config, mesh).lower(state, batches[0]).compile(compiler_options=QUICK)
    for batch in batches:
        state, metrics = step(state, batch)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found)


@functools.cache
def on_one_device(model: TransformerConfig) -> np.ndarray:
    return losses_and_norms(model, 1)


def check(model: TransformerConfig, sizes: dict[str, Any]) -> None:
    assert np.ptp(on_one_device(model)[:, 0]) > 1e-2
    np.testing.assert_allclose(losses_and_norms(model, 8, **sizes), on_one_device(model), rtol=1e-4)


def test_experts_in_both_stacks_train_on_a_mesh_of_all_axes_as_on_one_device():
    check(replace(MODELS["t5"], experts=4, router_loss=0.1), MESHES["all axes, stage 3"])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_losses_and_gradients_of_one_device(name, sizes):
    check(MODELS[name], MESHES[sizes])
