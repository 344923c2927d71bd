"""Rows out of what a recipe holds out."""

import json

import pytest

from jaxllm.config import DataConfig, SourceConfig, UserError
from jaxllm.data.chat_template import ChatTemplate
from jaxllm.evaluation.held_out import accepted, held_out_rows, trained_rows
from jaxllm.evaluation.rows import Row


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "sums.jsonl"
    rows = [{"task": f"t{i % 3}", "prompt": f"{i} and 1?", "completion": str(i + 1)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(
        kind="jsonl", path=str(path), format="auto", task_field="task", held_out_tasks=("t2",), system="Add."
    )
    return DataConfig(sources=(source,), validation_fraction=0.2)


def test_rows_are_the_held_out_questions_and_their_answers(data):
    rows = held_out_rows(data)
    tasks = [row.task for row in rows]
    assert tasks.count("t2") == 20
    assert 0 < tasks.count("t0") < 15
    first = rows[0]
    number = int(first.prompt[1]["content"].split()[0])
    assert first.prompt == ({"role": "system", "content": "Add."}, {"role": "user", "content": f"{number} and 1?"})
    assert first.references == (str(number + 1),)
    assert first.name == f"sums.jsonl:{number + 1}"


def test_the_rows_that_are_trained_on_are_all_the_others(data):
    held_out, trained = ({row.name for row in rows(data)} for rows in (held_out_rows, trained_rows))
    assert not held_out & trained
    assert len(held_out) + len(trained) == 60
    assert not any(row.task == "t2" for row in trained_rows(data))


def test_rows_that_a_template_refuses_can_be_left_out(data):
    template = ChatTemplate("{% if '7' in messages[-1].content %}{{ raise_exception('no 7') }}{% endif %}")
    rows = [*held_out_rows(data), Row("x:1", "t0", "7, as plain text", ("8",))]
    left = accepted(rows, template)
    assert 0 < len(left) < len(rows)
    assert [row for row in rows if isinstance(row.prompt, str) or "7" not in row.prompt[-1]["content"]] == left


def test_weights_of_messages_are_not_a_part_of_the_question(data, tmp_path):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    rows = [
        {"task": task, "messages": [*said, {"role": "user", "content": task}, {"role": "assistant", "content": "d"}]}
        for task in ("t2", "t0")
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = held_out_rows(data)
    assert [*row.prompt] == [
        {"role": "system", "content": "Add."},
        *said[:1],
        {"role": "assistant", "content": "b"},
        rows[0]["messages"][2],
    ]


def test_a_recipe_that_holds_out_no_conversation_is_told(data, tmp_path):
    (tmp_path / "a.txt").write_text("words\n" * 9)
    (tmp_path / "b.txt").write_text("others\n" * 9)
    texts = DataConfig(sources=(SourceConfig(kind="text", path=str(tmp_path)),), validation_fraction=0.5)
    with pytest.raises(UserError, match="--held-out: the recipe holds out no conversation"):
        held_out_rows(texts)
