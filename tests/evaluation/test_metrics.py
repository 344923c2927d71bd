"""Metrics, held against what SQuAD's script and `rouge_score` say (`tools/make_metric_fixtures.py`)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxllm.evaluation.metrics import (
    CHOICE_METRICS,
    TEXT_METRICS,
    Choices,
    Mean,
    best,
    is_chosen,
    rouge_l,
    same_number,
)

EXPECTED = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("metric", ["exact", "f1", "rougeL"])
def test_texts_are_worth_what_the_published_code_says(metric):
    rows = [row for row in EXPECTED if row["references"] != ["a"]]
    found = [best(TEXT_METRICS[metric], row["text"], row["references"]) for row in rows]
    assert found == [row[metric] for row in rows]
    assert len({round(value, 3) for value in found}) > (1 if metric == "exact" else 20)


@pytest.mark.parametrize(("text", "value"), [("A", 1.0), (" a.", 1.0), ("", 0.0), ("the", 0.0), ("B", 0.0)])
def test_an_article_that_is_the_answer_is_compared(text, value):
    assert TEXT_METRICS["exact"](text, "A") == value
    assert TEXT_METRICS["f1"](text, "A") == value


def test_the_longest_common_subsequence_of_long_texts_is_exact():
    """By the table that defines it."""
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 9, n).tolist() for n in (150, 130))
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
    common = table[-1, -1]
    expected = 2 * (common / 150) * (common / 130) / (common / 150 + common / 130)
    assert rouge_l(" ".join(map(str, a)), " ".join(map(str, b))) == expected


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("So she makes 9 * 2 = $18.", "9 * 2 = <<9*2=18>>18\n#### 18", 1),
        ("It is 1,234.50 in all", "#### 1234.5", 1),
        ("between 10-15", "15", 1),
        ("a loss of -3", "-3", 1),
        ("18 eggs, not 16", "18", 0),
        ("no idea", "18", 0),
        ("none", "none", 0),
    ],
)
def test_the_last_numbers_are_compared(text, reference, value):
    assert same_number(text, reference) == value


def test_choices_are_made_by_likelihood_length_and_information():
    choices = Choices(["no", "certainly", "être"], [-4.0, -9.0, -5.0], [-1.0, -9.5, -3.0])
    chosen = {m: [is_chosen(m, choices, answer) for answer in range(3)].index(1) for m in CHOICE_METRICS}
    assert chosen == {"acc": 0, "acc_norm": 1, "acc_bytes": 1, "acc_pmi": 1}
    by_bytes = Choices(["ab", "é"], [-3.0, -1.6])
    assert is_chosen("acc_norm", by_bytes, 0) == 1
    assert is_chosen("acc_bytes", by_bytes, 1) == 1
    assert is_chosen("acc", Choices(["a", "b"], [-1.0, -1.0]), 0) == 1


def test_errors_are_those_of_the_mean():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    mean = Mean.of(values)
    assert mean == (pytest.approx(0.6), pytest.approx(np.std(values, ddof=1) / math.sqrt(5)), 5)
    other = Mean(0.2, 0.3, 7)
    assert Mean.over([mean, other]) == (pytest.approx(0.4), pytest.approx(math.hypot(mean.stderr, 0.3) / 2), 2)
    assert mean.minus(other) == (pytest.approx(0.4), pytest.approx(math.hypot(mean.stderr, 0.3)), 5)
    single = Mean.of([1.0])
    assert single == (1.0, None, 1)
    assert Mean.over([mean, single]).stderr is None
    assert mean.minus(single).stderr is None
