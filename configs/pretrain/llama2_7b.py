"""Llama 2 7B on 2 trillion tokens of web text, as published (2307.09288).

    jaxllm train configs/pretrain/llama2_7b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 2's `tokenizer.model` in `data/llama2/`; name
others with --data.sources.0.path and --tokenizer.path.
Hardware: 64 to 256 GPUs or TPU chips of 80 GB or more (1 to 4 rows of 4,096 tokens on each at once).
Cost: 8.6e22 FLOPs, which is 10 days on 256 H100 at 40 % of their bfloat16 peak (by arithmetic).
Result: not yet measured.
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
    """The run: batches of 4 million tokens."""
    return RunConfig(
        name="llama2_7b",
        model=LLAMA2_7B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=4096, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=3e-4,
            eps=1e-5,
            schedule=ScheduleConfig(kind="cosine", warmup_steps=2000, final_fraction=0.1),
        ),
        train=TrainConfig(steps=476_837, batch_size=1024, accumulate=4, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
