"""Rows are answered: a choice by its likelihood, or a text that the model writes; and each answer is measured."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jaxllm.config import UserError
from jaxllm.evaluation.likelihood import Request
from jaxllm.evaluation.metrics import CHOICE_METRICS, TEXT_METRICS, Choices, best, is_chosen
from jaxllm.evaluation.model import Model
from jaxllm.evaluation.prompts import Prompts
from jaxllm.evaluation.rows import Row
from jaxllm.generation.config import SamplingConfig

Way = Literal["choice", "text"]
"""How a row is answered."""

OF_CHOICES = ("acc", "acc_norm")
OF_TEXTS = ("exact", "f1", "rougeL")
"""What is measured of rows with choices, and of others, where nothing is asked for."""

GREEDY = SamplingConfig(temperature=0)

CHOSEN_AT_ONCE = {"cpu": 32}
"""Rows whose choices are scored before their results are handed over, by platform: enough to fill rows of tokens."""

CHOSEN_AT_ONCE_ELSEWHERE = 1024


class Job(NamedTuple):
    """A row that is to be answered in one way."""

    number: int
    """Of the row, among all."""
    row: Row
    way: Way
    metrics: tuple[str, ...]


class Result(NamedTuple):
    """What became of a job."""

    number: int
    way: Way
    metrics: dict[str, float]
    answer: Any
    """The text that was written, or the log-probabilities of the choices."""
    tokens: int
    """That were written, or scored."""


def jobs_of(rows: Sequence[Row], metrics: Sequence[str]) -> list[Job]:
    """What is to be done for these metrics; both ways for a row with choices, if metrics of both are asked for.

    Raises:
        UserError: a row has nothing that could be measured so.
    """
    jobs = []
    for number, row in enumerate(rows):
        wanted = metrics or (OF_CHOICES if row.choices else OF_TEXTS)
        by_choice = tuple(name for name in wanted if name in CHOICE_METRICS and row.choices)
        by_text = tuple(name for name in wanted if name in TEXT_METRICS)
        if not by_choice and not by_text:
            raise UserError(f"--metrics {' '.join(metrics)}: {row.name} has no 'choices'; add {' or '.join(OF_TEXTS)}")
        jobs += [Job(number, row, "choice", by_choice)] * bool(by_choice)
        jobs += [Job(number, row, "text", by_text)] * bool(by_text)
    return jobs


def choose(model: Model, prompts: Prompts, jobs: Sequence[Job], platform: str) -> Iterator[list[Result]]:
    """Results of choices, several jobs' at once; long rows first, so that memory fails at once or never.

    Raises:
        UserError: the model is no decoder, or a row that it cannot read.
    """
    asked = [(job, prompts.choices(job.row)) for job in jobs]
    asked.sort(key=lambda each: -len(each[1][0].context))
    step = CHOSEN_AT_ONCE.get(platform, CHOSEN_AT_ONCE_ELSEWHERE)
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        requests: list[Request] = []
        for job, own in part:
            requests += [*own, *(prompts.alone(own) if "acc_pmi" in job.metrics else ())]
        scores = iter(model.scorer.score(requests))
        results = []
        for job, own in part:
            log_probs = [next(scores).log_prob for _ in own]
            alone = [next(scores).log_prob for _ in own] if "acc_pmi" in job.metrics else None
            choices = Choices(job.row.choices, log_probs, alone)
            measured = {name: is_chosen(name, choices, job.row.answer) for name in job.metrics}
            tokens = sum(len(request.continuation) for request in own)
            results.append(Result(job.number, job.way, measured, log_probs, tokens))
        yield results


def write(
    model: Model, prompts: Prompts, jobs: Sequence[Job], max_new_tokens: int, stop: Sequence[str], batch: int
) -> Iterator[list[Result]]:
    """Results of texts, each the likeliest token by token, a batch at a time; long prompts first.

    Raises:
        UserError: the model is but an encoder, or a row that it cannot read.
    """
    asked = [(job, prompts.question(job.row, max_new_tokens)) for job in jobs]
    asked.sort(key=lambda each: -len(each[1]))
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        ids = [ids for _, ids in part]
        full = ids + ids[-1:] * (batch - len(ids)) if start else ids  # which reuses the programs
        made = model.generator.generate_from(full, max_new_tokens, GREEDY, stop=stop)
        yield [
            Result(
                job.number,
                job.way,
                {name: best(TEXT_METRICS[name], text.text, job.row.references) for name in job.metrics},
                text.text,
                len(text.tokens),
            )
            for (job, _), text in zip(part, made, strict=False)
        ]
