"""Labels of texts by virtual tokens (2104.08691): what the number of tokens and what they start as are worth.

    tools/fetch_pretrained && python tools/compare_prompts.py runs/prompts

The rows are the labels of `configs/sft/forgetting.py`: topics, polarities and stars, a fifth of the records of each
task held out. The virtual tokens start as the words of the labels.

Result: not yet measured.
"""

from dataclasses import replace

from configs.prompt import smollm2_multitask
from configs.sft import forgetting
from jaxllm.config import PromptConfig, RunConfig

WORDS = ("Business", "Science and technology", "Yes", "No", "Positive", "Negative")
STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")


def recipe() -> RunConfig:
    """The run."""
    labels, tuned = forgetting.recipe(), smollm2_multitask.recipe()
    return replace(
        labels,
        name="labels_prompt",
        data=replace(labels.data, sources=(forgetting.source(forgetting.LABELS, 1.0),)),
        tuning=replace(tuned.tuning, prompt=PromptConfig(length=20, start="labels", labels=WORDS + STARS)),
        optimizer=tuned.optimizer,
    )
