"""Llama 2 7B at the size at which its scaling is told: one row of 4,096 tokens on each chip.

    jaxllm plan configs/scale/llama2_7b.py --topology v5e:16x16
    jaxllm train configs/scale/llama2_7b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 2's `tokenizer.model` in `data/llama2/`;
name others with --data.sources.0.path and --tokenizer.path. `jaxllm plan` reads neither.
Hardware: 256 TPU v5e chips; 16 to 1,024 with --train.batch-size of as many rows.
Cost: by the step, whose time `jaxllm plan` predicts.
Result: not trained; what `jaxllm plan` says of it is in the README.

As published (2307.09288) but for the batch: 1 million tokens on 256 chips.
"""

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


def recipe() -> RunConfig:
    """The run: one row on each chip at once."""
    return RunConfig(
        name="scale_llama2_7b",
        model=LLAMA2_7B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=4096, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1)
        ),
        train=TrainConfig(steps=100_000, batch_size=256, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
