import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.data.document import Document
from jaxllm.data.split import Split, are_held_out
from jaxllm.data.survey import survey
from tests.data.test_survey import Memory

NOTHING = np.zeros((0, 2), np.int32)


def row(text, **fields):
    return Document("file:1", text, named_by_place=True, **fields)


def sides(*sources, **split):
    """The sides on which documents of each group are."""
    found = survey([Memory(source) for source in sources], Split(**{"fraction": 0.3, **split}))
    of: dict[str | None, set[bool]] = {}
    for s, i, held_out in zip(found.source, found.index, found.held_out, strict=True):
        of.setdefault(sources[s][i].group, set()).add(bool(held_out))
    return of


def one_each(of):
    return {len(sides) for group, sides in of.items() if group is not None} == {1}


@pytest.mark.parametrize("fraction", [0.05, 0.95])
def test_a_group_is_whole_where_one_side_would_be_empty(fraction):
    for trial in range(50):
        of = sides([row(f"{trial} {i}", group=f"{trial} {i // 2}") for i in range(20)], fraction=fraction)
        assert one_each(of)
        assert {side for sides in of.values() for side in sides} == {True, False}


def test_groups_and_passages_connect_together():
    def told(i):
        return " ".join(f"w{i // 3}x{j}" for j in range(12))

    of = sides([row(f"{i} {told(i)} {i}", group=f"{i // 6} {i % 3}") for i in range(300)], passage_words=8)
    assert one_each(of)
    found = survey([Memory([row(f"{i} {told(i)} {i}", group=f"group {i}") for i in range(300)])], Split(0.3, (), (), 8))
    assert (found.held_out.reshape(-1, 3).sum(axis=1) % 3 == 0).all()
    assert 0.2 < found.held_out.mean() < 0.4


def test_what_belongs_to_a_whole_task_is_held_out_with_it():
    rows = [row(f"text {i}", group=f"group {i // 2}", task="ab"[i % 2] if i < 20 else "a") for i in range(100)]
    found = survey([Memory(rows)], Split(0.0, [("b",)]))
    assert found.held_out.tolist() == [True] * 20 + [False] * 80


def test_copies_of_a_text_connect_the_groups_of_both():
    for trial in range(50):
        copies = [row(f"{trial} {i}", group=f"{trial} {i // 2}") for i in range(8)]
        others = [row(f"{trial} {i}", group=None if i % 2 else f"{trial} other") for i in range(0, 8, 3)]
        for sources in ((copies, others), (others, copies)):
            assert one_each(sides(*sources, [row(f"{trial} alone {i}") for i in range(9)]))


def test_a_copy_of_a_row_of_a_whole_task_is_not_trained_on():
    rows = [row("first", task="a"), row("second", task="a"), row("first", task="b"), row("third", task="a")]
    found = survey([Memory(rows)], Split(0.0, [("b",)]))
    assert found.held_out.tolist() == [True, False, False]


def test_one_group_alone_cannot_be_split():
    with pytest.raises(UserError, match="or one group of them, of which none can be held out"):
        sides([row("one", group="a"), row("two", group="a")])
    with pytest.raises(UserError, match="are all that there is: leave something to train on"):
        are_held_out(0.5, np.array([0.1, 0.2]), np.array([True, False]), np.array([[0, 1]]), np.array([-1, -1]))


def test_the_share_of_connected_documents_is_that_of_all():
    share, none, no_task = np.random.default_rng(0).random(30_000), np.zeros(30_000, bool), np.full(30_000, -1)
    pairs = np.arange(30_000).reshape(-1, 3)
    connected = np.concatenate([pairs[:, :2], pairs[:, 1:]])
    assert abs(are_held_out(0.2, share, none, connected, no_task).mean() - 0.2) < 0.015
    assert (are_held_out(0.2, share, none, NOTHING, no_task) == (share < 0.2)).all()


@pytest.mark.parametrize("size", [1, 3, 10])
def test_of_each_task_the_fraction_is_held_out_but_for_less_than_a_group(size):
    tasks = {"many": 600, "some": 60, "few": 30}
    rows = [row(f"{t} {i}", group=f"{t} {i // size}", task=t) for t, count in tasks.items() for i in range(count)]
    found = survey([Memory(rows)], Split(0.2))
    for t, (_, name) in enumerate(found.tasks):
        assert abs(found.held_out[found.task == t].sum() - 0.2 * tasks[name]) < size
    assert one_each(sides(rows, fraction=0.2))


@pytest.mark.parametrize(("size", "count"), [(1, 9), (50, 200), (3, 12)])
def test_of_many_small_tasks_the_fraction_is_held_out_too(size, count):
    rows = [row(f"{t} {i}", group=f"{t} {i // size}", task=str(t)) for t in range(500) for i in range(count)]
    held_out = survey([Memory(rows)], Split(0.05)).held_out
    assert 0.04 < held_out.mean() < 0.06


def test_equal_inputs_in_several_tasks_are_on_one_side():
    rows = [row(f"input {i % 50}", target=f"{t} {i}", task=t) for t in "abc" for i in range(100)]
    found = survey([Memory(rows)], Split(0.2))
    of: dict[str, set[bool]] = {}
    for i, held_out in zip(found.index, found.held_out, strict=True):
        of.setdefault(rows[i].text, set()).add(bool(held_out))
    assert {len(sides) for sides in of.values()} == {1}


def test_tasks_that_share_their_groups_are_held_out_together():
    rows = [row(f"{t} {i}", group=str(i // 9), task=t) for t in "abc" for i in range(90)]
    rows += [row(f"no task {i}", group=str(i)) for i in range(10)] + [row("alone", task="d")]
    found = survey([Memory(rows)], Split(0.1))
    assert np.bincount(found.task, found.held_out).tolist() == [9, 9, 9, 1, 0]
    assert one_each(sides(rows, fraction=0.1))


def test_what_is_held_out_with_a_whole_task_counts_for_the_others():
    rows = [row(f"a {i}", group=str(i), task="a") for i in range(100)] + [
        row(f"b {i}", group=str(i), task="b") for i in range(30)
    ]
    found = survey([Memory(rows)], Split(0.2, [("b",)]))
    assert found.held_out[:100].tolist() == [True] * 30 + [False] * 70


def test_a_new_row_of_a_task_moves_no_more_than_one_other():
    rows = [row(f"text {i}", task="a") for i in range(200)]
    before = survey([Memory(rows)], Split(0.1)).held_out
    for i in range(200, 230):
        after = survey([Memory([*rows, row(f"text {i}", task="a")])], Split(0.1)).held_out[:200]
        assert (before != after).sum() <= 1
