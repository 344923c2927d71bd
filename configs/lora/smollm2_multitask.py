"""The tasks of `configs/sft/smollm2_multitask.py` with LoRA of rank 8 on all linear maps of the blocks (2106.09685).

    tools/fetch_pretrained && jaxllm train configs/lora/smollm2_multitask.py
    jaxllm adapter show runs/smollm2_multitask_lora

2,442,240 parameters are trained, 1.8 % of the base's.

Result (as of all parameters, three seeds): 49.8 % (1.8) and 41.4 % (1.1), so as many as all parameters have. Seed 0 on
2 cores: 49.3 % and 39.1 %, after 10 minutes, with 2.0 GiB at most. On rows held out otherwise, where it had 50.3 % of
trained tasks there, it had 48.4 % at a rate of 2e-3, and 47.8 % at 1e-3.
"""

from dataclasses import replace

from configs.sft import smollm2_multitask
from jaxllm.config import LoraConfig, RunConfig, TuningConfig


def recipe() -> RunConfig:
    """The run."""
    run = smollm2_multitask.recipe()
    return replace(
        run,
        name="smollm2_multitask_lora",
        tuning=TuningConfig(method="lora", lora=LoraConfig(rank=8, alpha=16.0)),
        optimizer=replace(run.optimizer, learning_rate=4e-3),
    )
