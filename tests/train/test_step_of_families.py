"""One result, however it is cut, for what models of other families have: windows, experts, both stacks, their heads."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxllm.config import MeshConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, TransformerConfig
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import place
from jaxllm.train.state import State, abstract_state, initial_state
from jaxllm.train.step import make_step

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
    "all axes, stage 3": MeshConfig(data=2, fsdp=2, tensor=2, zero_stage=3),
    "replicas, stage 1": MeshConfig(data=4, fsdp=2, zero_stage=1),
}
B, T, S = 16, 24, 32


def batch_of(config: TransformerConfig) -> dict[str, np.ndarray]:
    """Two documents a row, and padding."""
    random = np.random.default_rng(0)

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


@functools.cache
def started(model: TransformerConfig) -> State:
    """The state on the host; of one optimizer it is the same whatever else a run has."""
    with jax.default_prng_impl("unsafe_rbg"):  # compiles fast
        state = initial_state(RunConfig(model=model), make_mesh(MeshConfig(), jax.devices()[:1]))
    return jax.tree.map(np.asarray, state)


@functools.cache
def losses_and_norms(model: TransformerConfig, devices: int, mesh: MeshConfig) -> np.ndarray:
    """Of two steps on one batch."""
    config = RunConfig(
        model=model,
        mesh=mesh,
        train=TrainConfig(steps=10, batch_size=B, loss_chunk=64),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=0)),
    )
    of_run, found = make_mesh(mesh, jax.devices()[:devices]), []
    # Parameters are drawn once, which takes most of the time, and cut as each mesh wants them.
    start, wanted = started(model), abstract_state(config, of_run)
    state = jax.tree.map(lambda x, as_cut: jax.device_put(x, as_cut.sharding), start, wanted)
    batch = place(batch_of(model), of_run)
    step = make_step(config, of_run)
    for _ in range(2):
        state, metrics = step(state, batch)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [*((name, "all axes, stage 3") for name in MODELS), ("mixtral", "replicas, stage 1"), ("t5", "replicas, stage 1")],
)
def test_every_family_gives_the_losses_and_gradients_of_one_device(name, mesh):
    expected = losses_and_norms(MODELS[name], 1, MeshConfig())
    assert expected[1, 0] < expected[0, 0] - 0.05
    np.testing.assert_allclose(losses_and_norms(MODELS[name], 8, MESHES[mesh]), expected, rtol=1e-4)
