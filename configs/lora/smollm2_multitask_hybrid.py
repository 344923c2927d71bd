"""The tasks of `configs/sft/smollm2_multitask.py` with gated LoRA and gated prefixes (2110.07577, 2303.16199).

    tools/fetch_pretrained && jaxllm train configs/lora/smollm2_multitask_hybrid.py
    jaxllm adapter show runs/smollm2_multitask_hybrid     # also what the gates have become

Result (as of all parameters, three seeds): 46.6 % (0.9) and 40.6 % (1.7). Seed 0 on 2 cores: 48.0 % and 41.6 %, after
10 minutes, with 2.1 GiB at most. Another rate, such as LoRA's, was not tried.
"""

from dataclasses import replace

from configs.lora import smollm2_multitask
from jaxllm.config import PromptConfig, RunConfig


def recipe() -> RunConfig:
    """The run."""
    run = smollm2_multitask.recipe()
    tuning = replace(run.tuning, method="hybrid", prompt=PromptConfig(length=20))
    optimizer = replace(run.optimizer, learning_rate=1e-3)
    return replace(run, name="smollm2_multitask_hybrid", tuning=tuning, optimizer=optimizer)
