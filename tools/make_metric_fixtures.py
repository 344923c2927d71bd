"""Write tests/fixtures/metrics.json: what the published code of the metrics says of pairs of texts.

    pip install rouge_score && python tools/make_metric_fixtures.py evaluate-v1.1.py

`evaluate-v1.1.py` is SQuAD's own script, as its authors publish it (`rajpurkar/SQuAD-explorer`, and copied into
`allenai/bi-att-flow`). Every run writes the same file.
"""

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

from rouge_score import rouge_scorer

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "metrics.json"

PAIRS: list[tuple[str, list[str]]] = [
    ("Paris", ["Paris"]),
    ("the  Paris.", ["paris", "London"]),
    ("A theatre, an answer; the end", ["theatre answer end"]),
    ("", ["something"]),
    ("something", [""]),
    ("", [""]),
    ("the", ["a"]),
    ("U.S.A.", ["usa", "us a"]),
    ("3,500 km (approx.)", ["3500 km", "3500 kilometres"]),
    ("naïve café in Malmö", ["naive cafe in malmo", "Naïve café, in Malmö!"]),
    ("日本 の 首都", ["日本 の 首都 は 東京"]),
    ("İstanbul ẞ", ["istanbul ss"]),
    ("state-of-the-art models", ["state of the art model", "State-of-the-Art models"]),
    ("don't stop", ["dont stop", "do not stop"]),
    ("one two three four five", ["five four three two one", "one three five"]),
    ("the cat sat on the mat the cat", ["the cat the cat the mat", "a mat"]),
    ("x_1 = y**2\nprint(x_1)", ["x1 y2 print x1", "x_1 = y ** 2; print(x_1)"]),
    ("police killed the gunman", ["the gunman police killed", "police ended the gunman"]),
]


def drawn(count: int) -> list[tuple[str, list[str]]]:
    """Pairs of texts of the same few words."""
    random.seed(0)
    words = [
        "the",
        "a",
        "an",
        "cat",
        "Dog.",
        "dog,",
        "runs",
        "running",
        "RAN",
        "7",
        "77",
        "to-day",
        "it's",
        "(in)",
        "of",
    ]

    def text() -> str:
        return " ".join(random.choices(words, k=random.randint(0, 40)))

    return [(text(), [text() for _ in range(random.randint(1, 4))]) for _ in range(count)]


def main() -> None:
    """Writes the file."""
    spec = importlib.util.spec_from_file_location("squad", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    squad: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(squad)
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    rows = [
        {
            "text": text,
            "references": references,
            "exact": float(squad.metric_max_over_ground_truths(squad.exact_match_score, text, references)),
            "f1": float(squad.metric_max_over_ground_truths(squad.f1_score, text, references)),
            "rougeL": float(rouge.score_multi(references, text)["rougeL"].fmeasure),
        }
        for text, references in [*PAIRS, *drawn(60)]
    ]
    OUT.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
