"""What an answer is worth beside its references, and what a choice is: each from 0 to 1; and means with their errors.

A text may have several references: the best counts.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
NUMBER = re.compile(r"(?:(?<![\w.])-)?\d[\d,]*(?:\.\d+)?")


def normalised(text: str) -> str:
    """As SQuAD v1.1's script compares answers (1606.05250): lower case, without punctuation and articles, and with
    single spaces."""
    return " ".join(ARTICLES.sub(" ", _plain(text)).split())


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(PUNCTUATION).split())


def _compared(text: str, reference: str) -> tuple[str, str]:
    """Both `normalised`; but with their articles, where nothing would be left of the reference, such as the choice "A"
    (where SQuAD's script takes every other article for it, and no answer too)."""
    form = normalised if normalised(reference) else _plain
    return form(text), form(reference)


def exact_match(text: str, reference: str) -> float:
    """1 where both are the same once they are `normalised`, with articles where the reference is nothing else."""
    found, wanted = _compared(text, reference)
    return float(found == wanted)


def token_f1(text: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words of both (1606.05250), as `exact_match` takes them."""
    words, wanted = (each.split() for each in _compared(text, reference))
    return _f1(sum((Counter(words) & Counter(wanted)).values()), len(words), len(wanted))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"): F1 by the longest common
    subsequence of the tokens, runs of the letters a to z and digits. Without stemming, as `rouge_score` does it."""
    tokens, wanted = (re.findall("[a-z0-9]+", each.lower()) for each in (text, reference))
    return _f1(_common(tokens, wanted), len(tokens), len(wanted))


def same_number(text: str, reference: str) -> float:
    """1 where the last number of the text is the last one of the reference, as answers of GSM8K are read
    (2110.14168); where that has none, there is nothing to be right."""
    found, wanted = (_last_number(each) for each in (text, reference))
    return float(wanted is not None and found == wanted)


TEXT_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact_match,
    "f1": token_f1,
    "rougeL": rouge_l,
    "number": same_number,
}
"""Of an answer that was written: `(text, reference) -> value`."""


def best(metric: Callable[[str, str], float], text: str, references: Sequence[str]) -> float:
    """Beside the reference that is nearest."""
    return max(metric(text, reference) for reference in references)


def _f1(same: int, found: int, wanted: int) -> float:
    if same == 0:
        return 0.0
    precision, recall = same / found, same / wanted
    return 2 * precision * recall / (precision + recall)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence: a row of its table is the bits of one number (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited"), so that long texts take no time worth the name."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere
    for token in b:
        met = row & places.get(token, 0)
        row = ((row + met) | (row - met)) & everywhere
    return len(a) - row.bit_count()


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


class Choices(NamedTuple):
    """What a model thinks of the choices of one question; each list is in their order."""

    texts: Sequence[str]
    log_probs: Sequence[float]
    """Of each choice after the question."""
    alone: Sequence[float] | None = None
    """Of each choice after nothing, or after what stands where a question is missing."""


def _of_likelihood(choices: Choices) -> Sequence[float]:
    return choices.log_probs


def _by_characters(choices: Choices) -> Sequence[float]:
    return [log_prob / len(text) for log_prob, text in zip(choices.log_probs, choices.texts, strict=True)]


def _by_bytes(choices: Choices) -> Sequence[float]:
    return [log_prob / len(text.encode()) for log_prob, text in zip(choices.log_probs, choices.texts, strict=True)]


def _of_information(choices: Choices) -> Sequence[float]:
    assert choices.alone is not None
    return [after - alone for after, alone in zip(choices.log_probs, choices.alone, strict=True)]


CHOICE_METRICS: dict[str, Callable[[Choices], Sequence[float]]] = {
    "acc": _of_likelihood,
    "acc_norm": _by_characters,
    "acc_bytes": _by_bytes,
    "acc_pmi": _of_information,
}
"""The score by which a choice is made. The names are lm-eval's, which calls the last one `acc_mutual_info`: likelihood;
by the characters, or the bytes, of the choice; and by how much the question makes it likelier (2104.08315)."""


def is_chosen(metric: str, choices: Choices, answer: int) -> float:
    """1 where the answer has the highest score; of equal ones the first is chosen."""
    scores = CHOICE_METRICS[metric](choices)
    return float(max(range(len(scores)), key=scores.__getitem__) == answer)


class Mean(NamedTuple):
    """Of a metric over rows, or over tasks."""

    mean: float
    stderr: float | None
    """The standard error; none of a single row."""
    rows: int
    """That many; or that many tasks."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of rows, which are a sample of what might be asked."""
        n = len(values)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, None, n)
        return cls(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n), n)

    @classmethod
    def over(cls, tasks: Sequence["Mean"]) -> "Mean":
        """Of tasks that count alike. The tasks are these and no sample: the error is that of their rows."""
        errors = [task.stderr for task in tasks if task.stderr is not None]
        together = math.sqrt(math.fsum(error**2 for error in errors)) / len(tasks)
        return cls(
            math.fsum(task.mean for task in tasks) / len(tasks),
            together if len(errors) == len(tasks) else None,
            len(tasks),
        )

    def minus(self, other: "Mean") -> "Mean":
        """The difference of two that were measured apart from each other."""
        known = self.stderr is not None and other.stderr is not None
        error = math.hypot(self.stderr, other.stderr) if known else None  # type: ignore[arg-type]
        return Mean(self.mean - other.mean, error, self.rows)
