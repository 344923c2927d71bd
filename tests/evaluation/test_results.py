"""Results that are kept row by row, and their sums."""

import json

import pytest

from jaxllm.config import UserError
from jaxllm.evaluation.answers import Job, Result, jobs_of
from jaxllm.evaluation.metrics import Mean
from jaxllm.evaluation.results import Kept, load, over_tasks, rows_path, save, unlike
from jaxllm.evaluation.rows import Row

ROWS = [
    Row("x:1", "a", "q", ("yes",), ("yes", "no"), 0),
    Row("x:2", "b", "q", ("text",)),
    Row("x:3", "a", "q", ("no",), ("yes", "no"), 1),
]
RESULTS = [
    Result(0, "choice", {"acc": 1.0, "acc_norm": 0.0}, [-1.0, -2.0], 2),
    Result(1, "text", {"exact": 0.0, "f1": 0.5, "rougeL": 0.25}, "ein Text ☺", 3),
    Result(2, "choice", {"acc": 0.0, "acc_norm": 0.0}, [-1.0, -2.0], 2),
]


def test_metrics_decide_how_a_row_is_answered():
    assert [(job.number, job.way, job.metrics) for job in jobs_of(ROWS, ())] == [
        (0, "choice", ("acc", "acc_norm")),
        (1, "text", ("exact", "f1", "rougeL")),
        (2, "choice", ("acc", "acc_norm")),
    ]
    both = [(job.number, job.way, job.metrics) for job in jobs_of(ROWS[:2], ("f1", "acc_pmi"))]
    assert both == [(0, "choice", ("acc_pmi",)), (0, "text", ("f1",)), (1, "text", ("f1",))]
    with pytest.raises(UserError, match="--metrics acc: x:2 has no 'choices'; add exact or f1 or rougeL"):
        jobs_of(ROWS, ("acc",))


def test_an_evaluation_goes_on_where_it_was_cut_off(tmp_path):
    jobs, path = jobs_of(ROWS, ()), tmp_path / "deep" / "r.rows.jsonl"
    with Kept(jobs, path, "key") as kept:
        kept.add(RESULTS[1:2])
        kept.add(RESULTS[:1])
        written = path.read_bytes()
    path.write_bytes(written[:-9])  # cut within a line
    with Kept(jobs, path, "key") as kept:
        assert kept.missing("choice") == [jobs[0], jobs[2]]
        assert kept.missing("text") == []
        kept.add(RESULTS[::2])
    with Kept(jobs, path, "key") as kept:
        assert kept.results == {(result.number, result.way): result for result in RESULTS}
        assert kept.tasks() == {
            "a": {"acc": Mean.of([1.0, 0.0]), "acc_norm": Mean.of([0.0, 0.0])},
            "b": {"exact": Mean.of([0.0]), "f1": Mean.of([0.5]), "rougeL": Mean.of([0.25])},
        }
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[1]["row"] == "x:2"
    assert "☺" in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"r\.rows\.jsonl' is of another model, other options or other rows: name"):
        Kept(jobs, path, "other key")
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(lines)


@pytest.mark.parametrize("content", ["text\n", "{}\n", "[1]\n", '{"evaluation": "key"}\n{"number": 1}\n'])
def test_another_file_is_not_gone_on_with(tmp_path, content):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(UserError, match="is not what an evaluation has written: name another --out"):
        Kept([], tmp_path / "r.jsonl", "key")
    assert (tmp_path / "r.jsonl").read_text() == content


def test_a_file_of_which_nothing_was_written_is_begun_anew(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"evalua')
    with Kept(jobs_of(ROWS, ()), tmp_path / "r.jsonl", "key") as kept:
        kept.add(RESULTS)
    with Kept(jobs_of(ROWS, ()), tmp_path / "r.jsonl", "key") as kept:
        assert len(kept.results) == 3


def test_sums_are_read_as_they_were_written(tmp_path):
    tasks = {"a": {"acc": Mean(0.5, 0.1, 9), "f1": Mean(0.1, None, 1)}, "b": {"acc": Mean(0.1, 0.2, 3)}}
    save(tmp_path / "new" / "r.json", {"model": "m"}, tasks)
    assert load(tmp_path / "new" / "r.json") == ({"model": "m", "options": {}}, tasks)
    content = json.loads((tmp_path / "new" / "r.json").read_text())
    assert content["model"] == "m"
    assert content["mean"]["acc"]["mean"] == pytest.approx(0.3)
    assert over_tasks(tasks)["f1"] == Mean(0.1, None, 1)
    assert rows_path(tmp_path / "r.json").name == "r.rows.jsonl"


def test_what_decides_results_is_compared_and_what_does_not_is_not():
    one = {"chat": True, "options": {"limit": None, "files": ["a"], "batch": 16, "stop": [], "step": 1}}
    two = {"chat": False, "options": {"limit": 3, "files": ("a",), "batch": 8, "stop": (), "step": 2, "new": 1}}
    assert unlike(one, two) == ["limit: None, 3", "chat: True, False"]
    assert unlike(one, one) == []


@pytest.mark.parametrize(
    "content",
    ["{}", '{"tasks": {"a": 1}}', '{"tasks": {"a": {"acc": {"mean": 1}}}}', "[]", "{", '{"tasks": {}, "options": 3}'],
)
def test_what_is_no_result_is_told(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=r"r\.json'"):
        load(tmp_path / "r.json")


def test_jobs_have_one_result_each():
    job = Job(0, ROWS[0], "choice", ("acc",))
    with Kept([job], None, "") as kept:
        assert kept.missing("choice") == [job]
        kept.add([RESULTS[0]])
        assert kept.missing("choice") == []
