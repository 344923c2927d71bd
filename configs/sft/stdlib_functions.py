"""From docstring to code: the quickstart's model learns to answer, on the functions of this Python's standard library.

    jaxllm train configs/pretrain/quickstart.py && jaxllm train configs/sft/stdlib_functions.py
    jaxllm chat runs/stdlib_functions

Needs no file and no network. The template `plain` has headings in the place of tokens that the base has never read.

Result (jax 0.10, 2 cores, 3 minutes): a held-out loss of 3.25 nats a token of the answers, where the base has 3.68.
"""

from configs.pretrain import quickstart
from jaxllm.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="stdlib_functions",
        base="runs/quickstart",
        model=quickstart.recipe().model,
        data=DataConfig(sources=(SourceConfig(kind="stdlib_functions"),), sequence_length=256),
        tokenizer=TokenizerConfig(chat_template="plain"),
        objective=ObjectiveConfig(kind="sft"),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, weight_decay=0.0, schedule=ScheduleConfig(kind="linear", warmup_steps=10)
        ),
        train=TrainConfig(steps=100, batch_size=16),
        eval=EvalConfig(every=50, max_tokens=20_000, prompts=()),
        checkpoint=CheckpointConfig(every=50, keep=1),
    )
