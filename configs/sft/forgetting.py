"""Titles for news (gigaword), learnt by a model that can label texts, and what it forgets of that.

    tools/fetch_pretrained && python tools/forgetting.py runs/forgetting --seeds 0 1 2

The labels are topics (AG News, two of them in these rows), polarities (Amazon) and stars (Yelp). A fifth of the rows
rehearses them; `--data.sources.0.weight 0` leaves them out, and `--data.sources.1.weight 0` trains on labels alone, as
the model is that all runs begin with. A fifth of the records of each task is held out.

Result (jax 0.12, 2 cores; right labels and ROUGE-L of titles, in percent, deviations over three seeds, and standard
errors over rows without one):

                                    labels        titles
    commonest answer                48.6 ± 3.0     5.7 ± 0.5
    base                             0.4 ± 0.4    15.4 ± 0.7
    labels                          73.6 ± 5.3     0.1 ± 0.1
    then titles                    25.5 ± 17.2    32.4 ± 1.4
    then titles with rehearsal      79.8 ± 1.0    32.9 ± 1.8
    then titles by LoRA              4.1 ± 4.4    35.9 ± 0.9

How much titles alone leave of the labels varies from seed to seed (6.2, 39.3 and 31.1). LoRA, whose rate is
ten times as high, leaves less in each.
"""

from dataclasses import replace

from configs.sft import smollm2_multitask
from jaxllm.config import DataConfig, EvalConfig, MixtureConfig, RunConfig, SourceConfig

LABELS = (
    "ag_news_classify",
    "ag_news_classify_question_first",
    "amazon_polarity_Is_this_product_review_positive",
    "amazon_polarity_Is_this_review",
    "yelp_review_full_based_on_that",
    "yelp_review_full_format_rating",
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
            sources=(source(LABELS, 0.25), source(TITLES, 1.0)),
            mixture=MixtureConfig(kind="weights"),
            sequence_length=512,
            validation_fraction=0.2,
            passage_words=12,
        ),
        train=replace(run.train, steps=60),
        eval=EvalConfig(every=0, max_tokens=20_000, last_tokens=20_000, prompts=()),
    )
