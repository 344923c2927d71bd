"""Labels of texts by virtual tokens (2104.08691): what the number of tokens and what they start as are worth.

    tools/fetch_pretrained && python tools/compare_prompts.py runs/prompts --seeds 0 1 2

The rows are the labels of `configs/sft/forgetting.py`: topics, polarities and stars, a fifth of the records of each
task held out. The virtual tokens start as the words of the labels, and what is left of 20 as common tokens.

Result (`tools/compare_prompts.py`, seeds 0 to 2, 60 steps, on an H100 with jax 0.11; right labels in percent, held-out
loss in nats a token of an answer, deviations over seeds):

                               right          loss
    commonest answer     48.6
    1 token, common      18.9 ±  6.7    2.04 ± 0.47
    5 tokens, common     28.2 ±  9.4    1.19 ± 0.33
    20 tokens, common    41.9 ± 22.4    0.70 ± 0.50
    20 tokens, uniform   53.1 ±  1.6    0.45 ± 0.11
    20 tokens, labels    50.2 ±  1.8    0.55 ± 0.17

By the loss more tokens are better, as published. That words of labels are no worse a start than common tokens, and
those than numbers, three seeds do not show: common tokens are ahead with one (59.5 %) and lost with another (16.7 %),
and numbers are the best on average. All parameters, trained as long, have 73.6 ± 5.3 % (on 2 cores).
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
