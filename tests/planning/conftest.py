"""One compiled step for all tests that look at one."""

import pytest

from jaxllm.config import DataConfig, MeshConfig, RunConfig, TrainConfig, TransformerConfig
from jaxllm.planning.compilation import Compiled, compile_step
from jaxllm.planning.topology import target

MODEL = TransformerConfig(
    vocab_size=64, width=32, layers=4, heads=8, kv_heads=4, head_dim=8, ffn=48, max_positions=64, tied_embeddings=False
)


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """A small run on 8 devices."""
    return RunConfig(
        model=MODEL,
        data=DataConfig(sequence_length=32),
        train=TrainConfig(steps=200, batch_size=16, loss_chunk=64),
        mesh=MeshConfig(data=2, fsdp=-1),
    )


@pytest.fixture(scope="session")
def compiled(config: RunConfig) -> Compiled:
    """Its step on 8 CPU devices."""
    outcome = compile_step(config, target("cpu:8"))
    assert isinstance(outcome, Compiled)
    return outcome
