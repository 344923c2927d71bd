"""A small T5 v1.1 on this Python's standard library, in minutes and without an accelerator: it writes what its encoder
does not see.

    jaxllm train configs/pretrain/t5_small.py

Hardware: any machine with 2 cores. Cost: 9 minutes of training on an EPYC with AVX-512, 1.3 s a step. Result: a
held-out loss of 4.62 on the tokens of the spans, where their frequencies alone give 6.27 (`jaxllm data`).
"""

from dataclasses import replace

from jaxllm.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxllm.models.presets import T5_1_1_SMALL


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="t5_small",
        model=replace(
            T5_1_1_SMALL,
            vocab_size=4096,
            width=256,
            layers=3,
            encoder_layers=3,
            heads=4,
            kv_heads=4,
            ffn=640,
            start_token=None,
        ),
        data=DataConfig(sequence_length=256),
        tokenizer=TokenizerConfig(vocab_size=4096, extra_tokens=tuple(f"<extra_id_{i}>" for i in range(16))),
        objective=ObjectiveConfig(kind="span_corruption"),
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=4e-3,
            adam_learning_rate=0.01,
            b1=0.95,
            weight_decay=0.05,
            schedule=ScheduleConfig(kind="wsd", warmup_steps=20, final_fraction=0.0, decay_fraction=0.5),
        ),
        train=TrainConfig(steps=400, batch_size=16),
        checkpoint=CheckpointConfig(every=100),
        eval=EvalConfig(
            every=100,
            max_tokens=100_000,
            prompts=("def __init__(self, <extra_id_0>):\n        self.name = name\n",),
            sample_tokens=16,
        ),
    )
