"""Llama 3 70B with LoRA on all linear maps of its blocks, on a slice of 64 TPU v5p chips.

    jaxllm plan configs/lora/llama3_70b.py --topology v5p:4x4x4    # with the extra [plan]
    jaxllm train configs/lora/llama3_70b.py

Data: conversations as JSON lines in `data/instructions/`, in any form that `auto` knows; base: `jaxllm import` of Llama
3 70B into `models/llama-3-70b`. Name others with --data.sources.0.path and --base.
Hardware: meant for 64 TPU v5p chips; the base is kept in bfloat16, cut over all of them.
Result: not trained. As planned (libtpu 0.0.52, jax 0.12, compiled in 93 s beside other work): 16.7 GiB of 95 on each
chip, 10 of them the inputs of the layers, 2.1 the base and 0.05 the updates with their gradients and state; 8.8 to 15.0
s a step, 545 to 935 tokens/s a chip, MFU 37 to 64 %, bound by compute.
"""

from dataclasses import replace

from configs.lora import llama2_7b
from configs.scale.llama3_70b import LLAMA3_70B
from jaxllm.config import EvalConfig, RunConfig


def recipe() -> RunConfig:
    """The run: a row of 8,192 tokens on each chip."""
    run = llama2_7b.recipe()
    return replace(
        run,
        name="llama3_70b_lora",
        base="models/llama-3-70b",
        model=LLAMA3_70B,
        data=replace(run.data, sequence_length=8192),
        train=replace(run.train, batch_size=64, remat="full"),
        eval=EvalConfig(prompts=()),  # one chip has no room for the whole model
    )
