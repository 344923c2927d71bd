"""Llama 2 7B with LoRA on all linear maps of its blocks, on one node of 8 GPUs.

    jaxllm plan configs/lora/llama2_7b.py --topology h100:8    # with the extra [cuda]
    jaxllm train configs/lora/llama2_7b.py

Data: conversations as JSON lines in `data/instructions/`, in any form that `auto` knows; base: `jaxllm import` of Llama
2 7B into `models/llama-2-7b`. Name others with --data.sources.0.path and --base.
Hardware: meant for 8 GPUs; the base is kept in bfloat16, cut over all of them.
Result: not trained. As planned (jax 0.12, compiled in 36 s): 14.1 GiB of 59.3 on each H100, 12.4 of activations; 0.73
to 0.96 s a step, 8,503 to 11,235 tokens/s a GPU, MFU 26 to 34 %, bound by memory; 1.25 times the model's FLOPs are
executed, for what `remat` computes again. `--train.remat dots` executes 1.06 times, takes 24.7 GiB, and is predicted to
be slower, for it moves more.
"""

from jaxllm.config import (
    DataConfig,
    LoraConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
    TuningConfig,
)
from jaxllm.models.presets import LLAMA2_7B


def recipe() -> RunConfig:
    """The run: 16 rows of 4,096 tokens a step, 2 on each device."""
    return RunConfig(
        name="llama2_7b_lora",
        base="models/llama-2-7b",
        model=LLAMA2_7B,
        data=DataConfig(
            sources=(SourceConfig(kind="jsonl", path="data/instructions", format="auto"),), sequence_length=4096
        ),
        objective=ObjectiveConfig(kind="sft"),
        tuning=TuningConfig(method="lora", lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05), base_dtype="bfloat16"),
        optimizer=OptimizerConfig(
            learning_rate=2e-4, weight_decay=0.0, schedule=ScheduleConfig(kind="cosine", warmup_steps=50)
        ),
        train=TrainConfig(steps=2000, batch_size=16, remat="attention", loss_chunk=4096),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
