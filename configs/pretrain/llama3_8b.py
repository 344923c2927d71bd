"""Llama 3 8B on 15 trillion tokens of web text (2407.21783).

    jaxllm train configs/pretrain/llama3_8b.py

Data: Parquet files with a column `text` under `data/fineweb/`, and Llama 3's `tokenizer.json` in `data/llama3/`; name
others with --data.sources.0.path and --tokenizer.path.
Hardware: 128 to 512 GPUs or TPU chips of 80 GB or more (1 to 4 rows of 8,192 tokens on each at once).
Cost: 7.7e23 FLOPs, which is 44 days on 512 H100 at 40 % of their bfloat16 peak (by arithmetic).
Result: not yet measured.

The paper gives the peak rate and the tokens of the 8B model; warm-up and final rate are those that it gives for the
405B model, and the batch of 8 million tokens is the second of the three that it goes through there.
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
from jaxllm.models.presets import LLAMA3_8B

TEXT = "data/fineweb/**/*.parquet"
TOKENIZER = "data/llama3/tokenizer.json"


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="llama3_8b",
        model=LLAMA3_8B,
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=8192, validation_fraction=0.0001
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=8000, final_fraction=0.01)
        ),
        train=TrainConfig(steps=1_788_140, batch_size=1024, accumulate=2, remat="full", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
