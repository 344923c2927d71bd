"""Titles for news (gigaword), learnt by a model that can name the topic of a text, and what it forgets of that.

    tools/fetch_pretrained && python tools/forgetting.py runs/forgetting

A fifth of the rows rehearses the topics (AG News and DBpedia); `--data.sources.0.weight 0` leaves them out, and
`--data.sources.1.weight 0` trains on topics alone, as the model is that all runs begin with. A fifth of the records of
each task is held out.

Result (seed 0, jax 0.12, 2 cores, 25 minutes in all): right answers to 160 held-out questions about topics, and ROUGE-L
of 216 titles, in percent, with standard errors over rows:

                              topics         titles
    base                       0.0           15.4 +- 0.7
    topics                    91.9 +- 2.1     0.0
    then titles               49.4 +- 0.6    33.1 +- 1.4
    ... with rehearsal        91.9 +- 2.1    32.6 +- 1.4
    ... by LoRA, alone        41.2 +- 2.1    34.6 +- 1.3

So a fifth of rehearsal keeps all of what was learnt before, and costs half a point. LoRA, at a rate of 1e-3, does not
forget less. Seed 0 on an H100 has 92.5 and 49.4 in the second and third line.
"""

from dataclasses import replace

from configs.sft import smollm2_multitask
from jaxllm.config import DataConfig, EvalConfig, MixtureConfig, RunConfig, SourceConfig

TOPICS = (
    "ag_news_classify",
    "ag_news_classify_question_first",
    "dbpedia_14_given_a_choice_of_categories_",
    "dbpedia_14_given_a_list_of_category_what_does_the_title_belong_to",
)
TITLES = (
    "gigaword_TLDR",
    "gigaword_first_sentence_title",
    "gigaword_generate_summary_for_this",
    "gigaword_in_a_nutshell",
    "gigaword_make_a_title",
    "gigaword_write_a_title_for_this_sentence",
)


def source(tasks: tuple[str, ...], weight: float) -> SourceConfig:
    """Those tasks of the multitask file."""
    return replace(smollm2_multitask.DATA.sources[0], tasks=tasks, held_out_tasks=(), weight=weight)


def recipe() -> RunConfig:
    """The run."""
    run = smollm2_multitask.recipe()
    return replace(
        run,
        name="forgetting",
        data=DataConfig(
            sources=(source(TOPICS, 0.25), source(TITLES, 1.0)),
            mixture=MixtureConfig(kind="weights"),
            sequence_length=512,
            validation_fraction=0.2,
            passage_words=12,
        ),
        train=replace(run.train, steps=60),
        eval=EvalConfig(every=0, max_tokens=20_000, last_tokens=20_000, prompts=()),
    )
