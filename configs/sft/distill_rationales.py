"""Answers and rationales as two tasks, "distilling step by step" (2305.02301), on grade-school mathematics.

    tools/fetch_pretrained && jaxllm train configs/sft/distill_rationales.py
    jaxllm eval runs/distill_rationales --held-out configs/sft/distill_rationales.py --metrics number --limit 100

A prefix says which of the two is wanted, as published; the loss is that of the answers plus `loss_weight` times that of
the rationales, both in equal numbers. At inference the model answers without a rationale. Of a held-out question
neither is trained on.

Result: not yet measured.
"""

from jaxllm.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    MixtureConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
)
from jaxllm.models.presets import SMOLLM2_135M

GSM8K = "../shared/data/gsm8k_train.jsonl"


def gsm8k(task: str, completion: str, loss_weight: float) -> SourceConfig:
    """Its questions, with that part of their answers."""
    return SourceConfig(
        kind="jsonl",
        path=GSM8K,
        format="prompt_completion",
        prompt=f"[{task}] {{{{ question }}}}",
        completion=completion,
        task=task,
        group_field="question",
        loss_weight=loss_weight,
    )


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="distill_rationales",
        base="models/smollm2-135m-instruct",
        model=SMOLLM2_135M,
        data=DataConfig(
            sources=(
                gsm8k("label", "{{ answer.split('#### ')[1] }}", 1.0),
                gsm8k("rationale", "{{ answer.split('#### ')[0] | trim }}", 0.5),
            ),
            mixture=MixtureConfig(kind="proportional"),
            sequence_length=512,
            validation_fraction=0.05,
        ),
        objective=ObjectiveConfig(kind="sft"),
        optimizer=OptimizerConfig(
            learning_rate=5e-5, weight_decay=0.0, schedule=ScheduleConfig(kind="linear", warmup_steps=20)
        ),
        train=TrainConfig(steps=600, batch_size=4),
        eval=EvalConfig(every=200, max_tokens=20_000, prompts=()),
        checkpoint=CheckpointConfig(every=200, keep=1),
    )
