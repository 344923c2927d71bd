"""A small BART on this Python's standard library, in minutes and without an accelerator: it writes a text of which
its encoder sees a part.

    jaxllm train configs/pretrain/bart_small.py

Hardware: any machine with 2 cores. Cost: 17 minutes of training on an EPYC with AVX-512 that had other work to do,
2.4 s a step. Result: a held-out loss of 2.92 on the tokens of the whole text, where their frequencies alone give 6.77
(`jaxllm data`).
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
from jaxllm.models.presets import BART_BASE


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="bart_small",
        model=replace(
            BART_BASE,
            vocab_size=4096,
            width=256,
            layers=3,
            encoder_layers=3,
            heads=4,
            kv_heads=4,
            ffn=1024,
            max_positions=512,
            init_std=0.06,
        ),
        data=DataConfig(sequence_length=256),
        tokenizer=TokenizerConfig(vocab_size=4096, extra_tokens=("<mask>",)),
        objective=ObjectiveConfig(kind="infilling"),
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=4e-3,
            adam_learning_rate=0.01,
            b1=0.95,
            weight_decay=0.05,
            schedule=ScheduleConfig(kind="wsd", warmup_steps=50, final_fraction=0.0, decay_fraction=0.5),
        ),
        train=TrainConfig(steps=400, batch_size=16),
        checkpoint=CheckpointConfig(every=100),
        eval=EvalConfig(
            every=100,
            max_tokens=100_000,
            prompts=("def __init__(self, <mask>):\n        self.name = name\n",),
            sample_tokens=32,
        ),
    )
