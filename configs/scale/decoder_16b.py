"""A decoder of 16 billion parameters in rows of 2,048 tokens, 6 on each of 256 chips.

    jaxllm plan configs/scale/decoder_16b.py --topology v5e:16x16
    jaxllm train configs/scale/decoder_16b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 2's `tokenizer.model` in `data/llama2/`;
name others with --data.sources.0.path and --tokenizer.path. `jaxllm plan` reads neither.
Hardware: 256 TPU v5e chips.
Cost: by the step, whose time `jaxllm plan` predicts.
Result: not trained; what `jaxllm plan` says of it is in the README.

The shape and the batch of MaxText's published step (src/maxtext/configs/tpu/v5e/16b.sh there, its base model with
`global_parameter_scale=16`: 120 TFLOP/s a chip, full rematerialisation as here).
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

DECODER_16B = dataclasses.replace(LLAMA2_7B, heads=64, kv_heads=64, ffn=28672, max_positions=2048)
"""32 layers of width 4,096 with twice the heads and 2.6 times the hidden size of Llama 2 7B."""


def recipe() -> RunConfig:
    """The run: 6 rows on each chip at once."""
    return RunConfig(
        name="scale_decoder_16b",
        model=DECODER_16B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=2048, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=2e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1)
        ),
        train=TrainConfig(steps=100_000, batch_size=1536, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
