"""The tasks of `configs/sft/smollm2_multitask.py` with 20 virtual tokens (2104.08691): 11,520 parameters are trained.

    tools/fetch_pretrained && jaxllm train configs/prompt/smollm2_multitask.py

As published: Adafactor without scaling by parameters, at a constant rate of 0.3.

Result (as of all parameters, three seeds): 23.8 % (2.9) and 37.8 % (3.9). Seed 0 on 2 cores: 26.3 % and 39.2 %, after
10 minutes, with 1.9 GiB at most. In 150 steps of 4 rows (published: 30,000 of 32) it has learnt little but the form of
the answers.
"""

from dataclasses import replace

from configs.sft import smollm2_multitask
from jaxllm.config import OptimizerConfig, PromptConfig, RunConfig, ScheduleConfig, TuningConfig


def recipe() -> RunConfig:
    """The run."""
    return replace(
        smollm2_multitask.recipe(),
        name="smollm2_multitask_prompt",
        tuning=TuningConfig(method="prompt", prompt=PromptConfig(length=20)),
        optimizer=OptimizerConfig(
            kind="adafactor",
            parameter_scaling=False,
            learning_rate=0.3,
            weight_decay=1e-5,
            schedule=ScheduleConfig(kind="constant", warmup_steps=0),
        ),
    )
