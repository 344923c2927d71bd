"""GPT-2 124M on 10 billion tokens of web text.

    jaxllm train configs/pretrain/gpt2_124m.py

Data: Parquet files with a column `text` under `data/fineweb/` (FineWeb's 10-billion-token sample), and GPT-2's
`tokenizer.json` in `data/gpt2/`; name others with --data.sources.0.path and --tokenizer.path.
Hardware: 8 GPUs or TPU chips of 40 GB or more (64 rows of 1,024 tokens on each, in 4 parts).
Cost: 8.0e18 FLOPs, which is 42 minutes on 8 H100 at 40 % of their bfloat16 peak (by arithmetic).
Result: not yet measured.

The shape is GPT-2's, its vocabulary filled up to a multiple of 128. Rate, batch and steps are those with which llm.c
(github.com/karpathy/llm.c, discussion 481) trains it, after GPT-3 125M (2005.14165).
"""

from dataclasses import replace

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
from jaxllm.models.presets import GPT2_124M

TEXT = "data/fineweb/**/*.parquet"
TOKENIZER = "data/gpt2/tokenizer.json"


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="gpt2_124m",
        model=replace(GPT2_124M, vocab_size=50304),
        data=DataConfig(
            sources=(SourceConfig(kind="parquet", path=TEXT),), sequence_length=1024, validation_fraction=0.005
        ),
        tokenizer=TokenizerConfig(path=TOKENIZER),
        optimizer=OptimizerConfig(
            learning_rate=6e-4, schedule=ScheduleConfig(kind="cosine", warmup_steps=700, final_fraction=0.0)
        ),
        train=TrainConfig(steps=19_073, batch_size=512, accumulate=4, remat="dots", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
