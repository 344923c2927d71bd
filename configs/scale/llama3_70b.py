"""Llama 3 70B in rows of 8,192 tokens, 5 on each of 256 chips.

    jaxllm plan configs/scale/llama3_70b.py --topology v6e:16x16
    jaxllm train configs/scale/llama3_70b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 3's `tokenizer.json` in `data/llama3/`;
name others with --data.sources.0.path and --tokenizer.path. `jaxllm plan` reads neither.
Hardware: 256 TPU v6e chips, or as many with more memory.
Cost: by the step, whose time `jaxllm plan` predicts.
Result: not trained; what `jaxllm plan` says of it is in the README.

The shape (2407.21783) and the batch of MaxText's published step (docs/reference/models/tiering.md there: 960 tokens/s a
chip). Theirs keeps the products of attention in the host's memory too, beside the inputs of the layers.
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
from jaxllm.models.presets import LLAMA3_8B

TEXT = "data/fineweb/**/*.parquet"
TOKENIZER = "data/llama3/tokenizer.json"

LLAMA3_70B = dataclasses.replace(LLAMA3_8B, width=8192, layers=80, heads=64, ffn=28672)
"""Llama 3 70B (2407.21783)."""


def recipe() -> RunConfig:
    """The run: 5 rows on each chip at once."""
    return RunConfig(
        name="scale_llama3_70b",
        model=LLAMA3_70B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=8192, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1)
        ),
        train=TrainConfig(steps=100_000, batch_size=1280, remat="offload_inputs", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
