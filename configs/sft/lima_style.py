"""A few good examples and residual dropout that grows with depth, as LIMA was tuned (2305.11206).

    tools/fetch_pretrained && jaxllm train configs/sft/lima_style.py

175 hand-written instructions (Stanford Alpaca's seeds), of which 156 are trained on, in the place of LIMA's 1,000; 15
epochs of 43 rows, in batches of 10, which are some 36 examples; AdamW with 0.9 and 0.95, decay 0.1, a rate that falls
evenly from 1e-5 to 1e-6 without a warm-up, and dropout of residual branches from 0 in the first layer to 0.3 in the
last.

Result (seeds 0 to 2 on an H100 with jax 0.11, deviations over seeds): a held-out loss of 2.543 nats a token of an
answer (0.004), where the base has 2.541, and a run without dropout (`--model.dropout 0`) 2.417 (0.001). So the dropout
is too much for a model of this size that never saw any: with it, the loss of a training batch rises from 2.4 to 6.0,
and with 0.3 in all layers to 13. How people like the answers, by which LIMA was judged, was not measured.
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
    SourceConfig,
    TrainConfig,
)
from jaxllm.models.presets import SMOLLM2_135M


def recipe() -> RunConfig:
    """The run."""
    return RunConfig(
        name="lima_style",
        base="models/smollm2-135m-instruct",
        model=replace(SMOLLM2_135M, first_dropout=0.0, dropout=0.3),
        data=DataConfig(
            sources=(
                SourceConfig(
                    kind="jsonl",
                    path="../shared/data/alpaca_seed_tasks.jsonl",
                    format="prompt_completion",
                    prompt="{{ instruction }}{% if instances[0].input %}\n\n{{ instances[0].input }}{% endif %}",
                    completion="{{ instances[0].output }}",
                ),
            ),
            sequence_length=512,
            validation_fraction=0.1,
        ),
        objective=ObjectiveConfig(kind="sft"),
        optimizer=OptimizerConfig(
            learning_rate=1e-5,
            weight_decay=0.1,
            schedule=ScheduleConfig(kind="linear", warmup_steps=0, final_fraction=0.1),
        ),
        train=TrainConfig(steps=64, batch_size=10),
        eval=EvalConfig(every=25, prompts=("Give three tips for staying healthy.",)),
        checkpoint=CheckpointConfig(every=25, keep=1),
    )
