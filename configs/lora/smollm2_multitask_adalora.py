"""The tasks of `configs/sft/smollm2_multitask.py` with AdaLoRA (2303.10512): ranks come down from 12 to 8 on average.

    tools/fetch_pretrained && jaxllm train configs/lora/smollm2_multitask_adalora.py
    jaxllm adapter show runs/smollm2_multitask_adalora    # the ranks that are left, by module and layer

Result (on rows held out otherwise, where LoRA had 50.3 %; on an H100 with jax 0.11): 44.2 % on trained tasks (2.2); at
a rate of 1e-3, on 2 cores, 27.9 %, after 10 minutes, with 2.5 GiB at most. So at equal size it is not above LoRA after
150 steps.
"""

from dataclasses import replace

from configs.lora import smollm2_multitask
from jaxllm.config import RunConfig


def recipe() -> RunConfig:
    """The run."""
    run = smollm2_multitask.recipe()
    return replace(
        run,
        name="smollm2_multitask_adalora",
        tuning=replace(run.tuning, method="adalora"),
        optimizer=replace(run.optimizer, learning_rate=5e-3),
    )
