"""Rows of conversations: what has weight, what is cut off, and how tasks are mixed and held out."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from jaxllm.config import DataConfig, MixtureConfig, ObjectiveConfig, SourceConfig, TokenizerConfig
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.data.mixture import example_shares, row_shares
from tests.data.batches import epoch, equal, joined, segments

SFT = ObjectiveConfig(kind="sft")


def pair(i, answer="value", **fields):
    return {"prompt": f"name {i}", "completion": answer, **fields}


@pytest.fixture
def load(tmp_path, model_path):
    """A loader of rows in files."""

    def loaded(*files, batch_size=1, seed=0, length=64, objective=SFT, **fields):
        sources = []
        for n, rows in enumerate(files):
            options = rows if isinstance(rows, tuple) else (rows, {})
            path = tmp_path / f"file{n}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in options[0]))
            sources.append(SourceConfig(kind="jsonl", path=str(path), **{"format": "auto", **options[1]}))
        fields = {"validation_fraction": 0.0, "sequence_length": length, **fields}
        data = DataConfig(sources=tuple(sources), **fields)
        corpus = prepare_corpus(data, TokenizerConfig(path=str(model_path), chat_template="plain"))
        return Loader(corpus, data, batch_size, seed, objective)

    return loaded


def answers(loader, batch):
    """What has weight in each segment."""
    decode = loader.corpus.tokenizer.decode
    return [
        decode([t for t, w in zip(s["targets"], s["weights"], strict=True) if w])
        for s in segments(batch)
        if s["tokens"]
    ]


# Rows


def test_each_conversation_may_weigh_as_much_as_another_in_training(load):
    rows = [pair(i, "value " * (1 + i % 9)) for i in range(40)]
    objective = ObjectiveConfig(kind="sft", weigh="conversations")
    loader = load((rows, {"loss_weight": 0.5}), objective=objective, length=200, validation_fraction=0.2)
    trained = [np.array(s["weights"]) for k in range(4) for s in segments(loader.batch(k)) if s["tokens"]]
    assert len({(weights > 0).sum() for weights in trained}) > 3
    for weights in trained:
        assert weights.sum() == pytest.approx(0.5)
        assert len(set(weights[weights > 0].tolist())) == 1
    held_out = next(loader.validation_batches(1))
    assert set(held_out["weights"].ravel().tolist()) == {0.0, 1.0}


def test_an_epoch_trains_every_answer_once_with_its_end_and_nothing_else(load):
    loader = load([pair(i, f"value {i}" * (i % 7 + 1)) for i in range(50)], length=200)
    batch = epoch(loader)
    assert Counter(answers(loader, batch)) == Counter(f"value {i}" * (i % 7 + 1) for i in range(50))
    for segment in segments(batch):
        told = [t for t, w in zip(segment["targets"], segment["weights"], strict=True) if w]
        assert told[-1] == loader.corpus.tokenizer.eos_id
        assert segment["tokens"][1:] == segment["targets"][:-1]
        assert set(segment["weights"]) == {0.0, 1.0}
    assert loader.packing_efficiency == (batch["segments"] > 0).mean()
    assert (loader.left_out, loader.truncated, loader.losses()) == (0, 0, [])


def test_texts_beside_conversations_are_trained_whole_and_cut_into_pieces(load):
    text = "self for while " * 80
    loader = load([pair(i) for i in range(20)], ([{"text": text}], {"format": "text"}))
    encoded = loader.corpus.tokenizer.encode(text)
    rows = joined([loader.batch(k) for k in range(4 * sum(map(len, loader.plans)))])
    whole = [s for s in segments(rows) if 0 not in s["weights"]]
    assert len(encoded) > 3 * 64
    assert {tuple(s["targets"]) for s in whole} == {
        tuple([*encoded, 2][i : i + 64]) for i in range(0, len(encoded) + 1, 64)
    }


def test_the_loss_weight_of_a_source_multiplies_its_weights_in_training_alone(load):
    files = ([pair(i) for i in range(30)], {"loss_weight": 0.25}), [pair(i, "total") for i in range(30)]
    loader = load(*files, validation_fraction=0.3)
    weights = {
        word: {
            w
            for s in segments(joined([loader.batch(k) for k in range(20)]))
            if word in text(loader, s)
            for w in s["weights"]
        }
        for word in ("value", "total")
    }
    assert weights == {"value": {0.0, 0.25}, "total": {0.0, 1.0}}
    held_out = joined(list(loader.validation_batches(4)))
    assert set(held_out["weights"].ravel().tolist()) == {0.0, 1.0}


def text(loader, segment):
    return loader.corpus.tokenizer.decode(segment["targets"])


# Conversations that are longer than a row


LONG = [
    {"prompt": "name", "completion": "value " * 60},  # its beginning has targets
    {"prompt": "name " * 60, "completion": "value"},  # and that of this one has not
    {"prompt": "for", "completion": "while"},
]


@pytest.mark.parametrize(("truncation", "left", "cut"), [("end", 0, 2), ("start", 0, 2), ("leave_out", 2, 0)])
def test_a_conversation_longer_than_a_row_is_cut_so_that_it_has_targets(load, truncation, left, cut):
    loader = load(LONG, truncation=truncation)
    (documents,) = loader.corpus.train
    stored = {
        documents.name(d): documents.tokens[a:b].tolist()
        for d, (a, b) in enumerate(itertools.pairwise(documents.starts))
    }
    found = {}
    for k in range(len(loader.plans[0])):
        for segment in segments(loader.batch(k)):
            assert sum(segment["weights"]) > 0
            (name,) = [n for n, ids in stored.items() if contains(ids, [*segment["tokens"], segment["targets"][-1]])]
            found[name] = [*segment["tokens"], segment["targets"][-1]]
    assert (loader.left_out, loader.truncated) == (left, cut)
    assert found.pop("file0.jsonl:3") == stored["file0.jsonl:3"]
    if truncation == "leave_out":
        assert found == {}
        return
    first, second = (stored[f"file0.jsonl:{n}"] for n in (1, 2))
    assert found["file0.jsonl:1"] == (first[:65] if truncation == "end" else first[-65:])
    assert found["file0.jsonl:2"] == second[-65:]


def contains(ids, part):
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def test_what_follows_the_last_answer_is_no_reason_to_lose_it(load):
    turns = [("user", "a"), ("assistant", "value"), ("user", "name " * 90)]
    loader = load([{"messages": [{"role": r, "content": c} for r, c in turns]}, pair(1)], truncation="start")
    assert Counter(answers(loader, epoch(loader))) == {"value": 2}


def test_another_truncation_is_another_plan(load):
    assert (
        load(LONG, truncation="end").plans[0].lengths.sum() != load(LONG, truncation="leave_out").plans[0].lengths.sum()
    )


# Mixtures


def test_shares_of_examples_are_those_of_the_closed_form():
    sources = (SourceConfig(weight=1.0), SourceConfig(weight=2.0))
    of, rows, examples = [0, 0, 1], [10, 40, 25], [100, 100, 400]
    for mixture, wanted in (
        (MixtureConfig(kind="proportional"), [100, 100, 800]),
        (MixtureConfig(kind="proportional", cap=50), [50, 50, 100]),
        (MixtureConfig(kind="temperature", temperature=2.0), [10, 10, 40]),
        (MixtureConfig(kind="temperature", temperature=2.0, cap=225), [10, 10, 30]),
    ):
        shares = row_shares(DataConfig(sources=sources, mixture=mixture), of, rows, examples)
        assert shares.sum() == pytest.approx(1)
        per_example = np.array(rows) / examples
        assert shares / per_example / (shares / per_example).sum() == pytest.approx(np.array(wanted) / sum(wanted))
        assert example_shares(shares, rows, examples) == pytest.approx(np.array(wanted) / sum(wanted))
    cold = MixtureConfig(kind="temperature", temperature=0.01)
    assert row_shares(DataConfig(sources=sources, mixture=cold), of, rows, [100, 1000, 4000]).tolist() == [0, 0, 1]
    by_weights = row_shares(DataConfig(sources=sources), of, rows, examples)
    assert by_weights == pytest.approx([1 / 3 * 10 / 50, 1 / 3 * 40 / 50, 2 / 3])
    assert row_shares(DataConfig(sources=sources), of, [0, 0, 5], [0, 0, 9]).tolist() == [0, 0, 1]


@pytest.fixture
def tasks():
    """Three tasks in one file, of 12 long examples, of 60 and of 240 short ones."""
    rows = [pair(i, "value " * 20, task="long") for i in range(12)]
    rows += [pair(i, "total", task="few") for i in range(60)] + [pair(i, "index", task="many") for i in range(240)]
    return rows, {"task_field": "task"}


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        (MixtureConfig(), [12, 60, 240]),
        (MixtureConfig(kind="proportional"), [12, 60, 240]),
        (MixtureConfig(kind="proportional", cap=12), [1, 1, 1]),
        (MixtureConfig(kind="temperature", temperature=2.0), [12**0.5, 60**0.5, 240**0.5]),
    ],
)
def test_the_examples_that_are_trained_have_those_shares(load, tasks, mixture, wanted):
    loader = load(tasks, mixture=mixture)
    assert [task.name for task in loader.corpus.tasks] == ["long", "few", "many"]
    assert loader.shares == pytest.approx(np.array(wanted) / sum(wanted))
    seen = Counter(
        ["long", "few", "many"][["value", "total", "index"].index(answer.split()[0])]
        for k in range(600)
        for answer in answers(loader, loader.batch(k))
    )
    counts = np.array([seen[name] for name in ("long", "few", "many")])
    assert counts / counts.sum() == pytest.approx(np.array(wanted) / sum(wanted), rel=0.1)


def test_of_a_text_beside_tasks_rows_are_the_examples(load, tasks):
    text = [{"text": "total = value + index\n" * 400} for _ in range(2)]
    mixture = MixtureConfig(kind="proportional", cap=20)
    loader = load(tasks, (text, {"format": "text"}), mixture=mixture)
    rows = min(20, len(loader.plans[3]))
    assert loader.shares == pytest.approx(np.array([12, 20, 20, rows]) / (52 + rows))
    assert loader.trained_shares.sum() == pytest.approx(1)
    assert loader.trained_shares[3] > loader.shares[3]


def test_batch_k_of_a_mixture_is_a_function_of_seed_and_k_alone(load, tasks):
    mixture = MixtureConfig(kind="temperature", temperature=3.0)
    whole = [load(tasks, mixture=mixture, batch_size=4).batch(k) for k in (6, 7)]
    assert equal(load(tasks, mixture=mixture, batch_size=8).batch(3), joined(whole))
    assert equal(
        load(tasks, mixture=mixture, batch_size=4).batch(6, rows=[1, 2]), {n: x[1:3] for n, x in whole[0].items()}
    )
    assert not equal(load(tasks, mixture=mixture, batch_size=4, seed=1).batch(6), whole[0])


# The held-out set of each task


def test_each_tasks_held_out_rows_are_a_part_of_the_whole_set(load, tasks):
    loader = load(tasks, validation_fraction=0.3)
    whole = joined(list(loader.validation_batches(1)))
    parts = [joined(list(loader.task_batches(t, 10_000, 1))) for t in range(3)]
    rows = Counter(row.tobytes() for row in whole["tokens"])
    assert rows == Counter(row.tobytes() for part in parts for row in part["tokens"])
    for word, part in zip(("value", "total", "index"), parts, strict=True):
        assert {answer.split()[0] for answer in answers(loader, part)} == {word}
    (first,) = loader.task_batches(2, 2, 4)
    assert ((first["segments"] > 0).any(axis=1)).tolist() == [True, True, False, False]
    assert equal({n: x[:2] for n, x in first.items()}, {n: x[:2] for n, x in parts[2].items()})
    assert equal(next(loader.task_batches(2, 2, 4, rows=[1])), {n: x[1:2] for n, x in first.items()})


def test_the_first_held_out_rows_are_a_fair_sample_of_the_tasks(load):
    files = [([pair(i, f"{word} " * 9, task=word) for i in range(n)], {}) for word, n in (("value", 90), ("total", 30))]
    loader = load(*files, validation_fraction=0.5, length=48)
    rows = [len(plan) for plan in loader.validation_plans]
    half = loader._held_out[: sum(rows) // 2, 0]
    assert abs((half == 0).sum() - rows[0] / 2) <= 1
    assert abs((half == 1).sum() - rows[1] / 2) <= 1


def test_rows_of_a_task_can_be_asked_for(load, tasks):
    loader = load(tasks, validation_fraction=0.2)
    for task, word in enumerate(("value", "total", "index")):
        for held_out in (False, True):
            rows = loader.first_rows(2, held_out, task)
            assert {a.split()[0] for a in answers(loader, loader.fill(rows))} == {word}
    assert equal(loader.fill(loader.first_rows(1, False)), loader.batch(0))
