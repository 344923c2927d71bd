"""Llama 2 70B in rows of 4,096 tokens, 2 on each of 512 chips.

    jaxllm plan configs/scale/llama2_70b.py --topology v5p:8x8x8
    jaxllm train configs/scale/llama2_70b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 2's `tokenizer.model` in `data/llama2/`;
name others with --data.sources.0.path and --tokenizer.path. `jaxllm plan` reads neither.
Hardware: 512 TPU v5p chips.
Cost: by the step, whose time `jaxllm plan` predicts.
Result: not trained; what `jaxllm plan` says of it is in the README.

The shape (2307.09288) and the batch of MaxText's published step (docs/reference/models/tiering.md there: 692 tokens/s a
chip). Theirs keeps all products but the first two of the MLP.
"""

import dataclasses

from jaxllm.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxllm.models.presets import LLAMA2_7B

TEXT = "data/fineweb/**/*.parquet"
TOKENIZER = "data/llama2/tokenizer.model"

LLAMA2_70B = dataclasses.replace(LLAMA2_7B, width=8192, layers=80, heads=64, kv_heads=8, ffn=28672)
"""Llama 2 70B (2307.09288)."""


def recipe() -> RunConfig:
    """The run: 2 rows on each chip at once."""
    return RunConfig(
        name="scale_llama2_70b",
        model=LLAMA2_70B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=4096, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1)
        ),
        train=TrainConfig(steps=100_000, batch_size=1024, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
