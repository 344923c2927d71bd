import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from jaxllm.config import UserError
from jaxllm.evaluation.rows import Examples, Row, chosen_rows, read_rows

SAID = [{"role": "user", "content": "Capital of France?"}]
RECORDS = [
    {"task": "a", "prompt": "1 + 1 =", "completion": "2"},
    {"task": "a", "prompt": SAID, "references": ["Paris", "It is Paris"]},
    {"question": "2 + 2 =", "answer": 4},
    {"messages": [*SAID, {"role": "assistant", "content": "Paris"}]},
    {"task": "b", "prompt": "Yes or no?", "choices": ["yes", "no"], "answer": 1},
    {"task": "b", "prompt": "Yes or no?", "choices": ["yes", "no"], "completion": "yes"},
    {"task": "c", "prompt": "Nothing:", "completion": "", "choices": None},
]
ROWS = [
    ("a", "1 + 1 =", ("2",)),
    ("a", tuple(SAID), ("Paris", "It is Paris")),
    ("questions", "2 + 2 =", ("4",)),
    ("questions", tuple(SAID), ("Paris",)),
    ("b", "Yes or no?", ("no",), ("yes", "no"), 1),
    ("b", "Yes or no?", ("yes",), ("yes", "no"), 0),
    ("c", "Nothing:", ("",)),
]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_rows_of_every_shape_are_read_from_lines_packed_or_not(tmp_path):
    (tmp_path / "questions.jsonl").write_bytes(lines(RECORDS[:3]) + b"\n" + lines(RECORDS[3:]))
    (tmp_path / "questions.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS)))
    numbers = [1, 2, 3, 5, 6, 7, 8]
    expected = [Row(f"questions.jsonl:{n}", *row) for n, row in zip(numbers, ROWS, strict=True)]
    assert read_rows([str(tmp_path / "questions.jsonl")]) == expected
    packed = [Row(f"questions.jsonl.gz:{n}", *row) for n, row in enumerate(ROWS, 1)]
    assert read_rows([str(tmp_path)]) == expected + packed


def test_rows_are_read_from_parquet(tmp_path):
    whole = [RECORDS[0], *RECORDS[4:]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole[:1] + whole[3:]), tmp_path / "some.parquet")
    assert read_rows([str(tmp_path / "some.parquet")]) == [
        Row("some.parquet:0", *ROWS[0]),
        Row("some.parquet:1", *ROWS[6]),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{bad", r"x\.jsonl:2: not JSON"),
        ("[1]", r"x\.jsonl:2: expected an object with named fields, got \[1\]"),
        ('{"text": "a"}', r"x\.jsonl:2: no 'prompt' \(nor 'question' or 'messages'\); it has text"),
        ('{"prompt": "a"}', r"x\.jsonl:2: no 'references' or 'completion' or 'answer'; it has prompt"),
        ('{"prompt": "", "answer": "a"}', r"x\.jsonl:2: an empty 'prompt'"),
        ('{"prompt": 3, "answer": "a"}', r"x\.jsonl:2, field 'prompt': expected text, got int 3"),
        ('{"prompt": [3], "answer": "a"}', r"x\.jsonl:2, field 'prompt', message 1: expected an object with a 'role'"),
        ('{"prompt": "a", "answer": []}', r"x\.jsonl:2, field 'answer': expected a list of texts, got \[\]"),
        ('{"prompt": "a", "answer": {}}', r"x\.jsonl:2, field 'answer': expected text, got dict"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"x\.jsonl:2: no 'references', and the last of its"),
        ('{"prompt": "a", "answer": 2, "choices": ["b", "c"]}', r"choices \(b, c\) or its place from 0 to 1, got 2"),
        (
            '{"prompt": "a", "answer": "B", "choices": ["b", "c"]}',
            r"choices \(b, c\) or its place from 0 to 1, got 'B'",
        ),
        ('{"prompt": "a", "answer": "b", "tools": [{}]}', r"x\.jsonl:2: has 'tools', which are not shown to the model"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]}',
            r"x\.jsonl:2, field 'messages', message 2: has 'tool_calls', and only texts are asked",
        ),
        ('{"prompt": "a", "answer": true, "choices": ["b", "c"]}', r"or its place from 0 to 1, got True"),
        ('{"prompt": "a", "answer": 0, "choices": ["b", ""]}', r"x\.jsonl:2, field 'choices': text 2 is empty"),
        ('{"prompt": "a", "answer": 0, "choices": "bc"}', r"field 'choices': expected a list of texts, got 'bc'"),
    ],
)
def test_a_row_of_another_shape_is_named(tmp_path, line, complaint):
    (tmp_path / "x.jsonl").write_bytes(lines(RECORDS[:1]) + line.encode() + b"\n")
    with pytest.raises(UserError, match=complaint):
        read_rows([str(tmp_path / "x.jsonl")])


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, content in {"x.jsonl.gz": b"no gzip", "x.parquet": b"no parquet"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"cannot read '.*{name}'"):
            read_rows([str(tmp_path / name)])
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"there is no row in .*empty\.jsonl"):
        read_rows([str(tmp_path / "empty.jsonl")])
    with pytest.raises(UserError, match="no such file or folder"):
        read_rows([str(tmp_path / "gone.jsonl")])


ALL = [Row(f"x:{n}", "ab"[n % 2], f"question {n}", (f"answer {n}",)) for n in range(12)]


def test_tasks_are_chosen_by_name_and_each_has_its_first_rows():
    assert [row.name for row in chosen_rows(ALL, (), 2)] == ["x:0", "x:1", "x:2", "x:3"]
    assert [row.name for row in chosen_rows(ALL, ("b",), 2)] == ["x:1", "x:3"]
    assert chosen_rows(ALL, (), None) == ALL
    with pytest.raises(UserError, match="--tasks c: there is no such task; there are a, b"):
        chosen_rows(ALL, ("a", "c"), None)


def test_examples_are_other_rows_of_the_task_and_follow_from_the_seed():
    examples = Examples(ALL, ALL, 3, seed=0)
    drawn = [examples(row) for row in ALL]
    for row, others in zip(ALL, drawn, strict=True):
        assert len({other.name for other in others} - {row.name}) == 3
        assert {other.task for other in others} == {row.task}
    assert drawn == [Examples(ALL, ALL, 3, seed=0)(row) for row in ALL]
    assert drawn != [Examples(ALL, ALL, 3, seed=1)(row) for row in ALL]
    assert len({tuple(other.name for other in others) for others in drawn}) > 6
    with pytest.raises(UserError, match=r"--few-shot 6: task 'a' has 6 rows, of which one is the question"):
        Examples(ALL, ALL, 6, seed=0)
    few = Row("x:99", "few", "question", ("answer",))
    assert len(Examples([*ALL, few], ALL, 3, seed=0)(ALL[0])) == 3
