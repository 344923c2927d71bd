"""A decoder of the shape of Llama 3.2 1B on 100 billion tokens of web text.

    jaxllm train configs/pretrain/llama_1b.py

Data: Parquet files with a column `text` under `data/fineweb-edu/`, and Llama 3's `tokenizer.json` in `data/llama3/`;
name others with --data.sources.0.path and --tokenizer.path.
Hardware: 8 GPUs or TPU chips of 80 GB or more (8 rows of 4,096 tokens on each at once).
Cost: 8.2e20 FLOPs, which is 72 hours on 8 H100 at 40 % of their bfloat16 peak (by arithmetic).
Result: not yet measured.

Llama 3.2 1B was itself cut out of Llama 3.1 8B and distilled, so there is no published rate for it; rate, schedule and
batch of 2 million tokens are those of TinyLlama 1.1B (2401.02385), which was trained from the start. RoPE is without
the scaling that took Llama from 8,192 tokens to 131,072.
"""

from dataclasses import replace

from jaxllm.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RopeScaling,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxllm.models.presets import LLAMA3_2_1B

TEXT = "data/fineweb-edu/**/*.parquet"
TOKENIZER = "data/llama3/tokenizer.json"


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="llama_1b",
        model=replace(LLAMA3_2_1B, max_positions=8192, rope_scaling=RopeScaling()),
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=4096, validation_fraction=0.001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=4e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1)
        ),
        train=TrainConfig(steps=47_684, batch_size=512, accumulate=8, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
