"""The tasks of `configs/sft/smollm2_multitask.py` with AdaLoRA (2303.10512): ranks come down from 12 to 8 on average.

    tools/fetch_pretrained && jaxllm train configs/lora/smollm2_multitask_adalora.py
    jaxllm adapter show runs/smollm2_multitask_adalora    # the ranks that are left, by module and layer

Result (as of all parameters, three seeds): 42.2 % (0.9) and 40.4 % (0.1). So at equal size it is not above LoRA after
150 steps, which take 10 minutes on 2 cores, with 2.5 GiB at most. On rows held out otherwise, where LoRA had 50.3 % on
2 cores, it had 27.9 % there at a rate of 1e-3, and 44.2 % on an H100 at this one.
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
