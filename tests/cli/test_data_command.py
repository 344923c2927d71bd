import json
import re

import pytest

from jaxllm.cli.data import run
from jaxllm.config import UserError

RECIPE = """
from jaxllm.config import DataConfig, RunConfig, SourceConfig, TokenizerConfig


def recipe() -> RunConfig:
    source = SourceConfig(kind="text", path={path!r})
    return RunConfig(
        name="small",
        data=DataConfig(sources=(source,), sequence_length=32, validation_fraction=0.2),
        tokenizer=TokenizerConfig(vocab_size=300),
    )
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(f"    def name_{i}(self):\n        return {i} * 'words and words'\n" * 9)
    (texts / "twin.txt").write_text((texts / "3.txt").read_text())
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(path=str(texts)))
    return path


def test_it_prepares_the_recipe_and_reports_documents_packing_and_speed(recipe, capsys, monkeypatch):
    monkeypatch.setattr("jaxllm.data.loader.loader_speed", lambda _: 123456.0)
    assert run([str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "Data of 'small'" in printed
    assert re.search(r"documents\W+30, of which \d+ held out", printed)
    assert re.search(r"dropped\W+1 duplicates, 0 empty", printed)
    assert re.search(r"rows\W+\d+ of 32", printed)
    assert re.search(r"packing efficiency\W+9\d\.\d\d%", printed)
    assert re.search(r"unigrams\W+loss \d\.\d{4}, by frequencies alone", printed)
    assert re.search(r"loader alone\W+123,456 tokens/s", printed)


def test_it_tells_how_many_pairs_are_longer_than_a_row(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxllm.data.loader.loader_speed", lambda _: 123456.0)
    pairs = "".join(f'{{"x": "def name_{i}", "y": "words"}}\n' for i in range(300)) + '{"x": "%s", "y": "a"}' % (
        "abc " * 99
    )
    (tmp_path / "pairs.jsonl").write_text(pairs)
    source = ("kind", "jsonl"), ("path", str(tmp_path / "pairs.jsonl")), ("field", "x"), ("target-field", "y")
    options = [word for field, value in source for word in (f"--data.sources.0.{field}", value)]
    kind = ["--objective.kind", "seq2seq", "--model.architecture", "encoder_decoder", "--tokenizer.vocab-size", "292"]
    assert run([str(recipe), *options, *kind]) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 pairs or conversations longer than a row were left out" in printed


TASKS = ("self", "total", "long")

CHATS = """
from jaxllm.config import DataConfig, ObjectiveConfig, RunConfig, SourceConfig, TokenizerConfig


def recipe() -> RunConfig:
    source = SourceConfig(kind="jsonl", path={path!r}, format="auto", task_field="task")
    return RunConfig(
        name="chats",
        data=DataConfig(sources=(source,), sequence_length=48, validation_fraction=0.3),
        tokenizer=TokenizerConfig(vocab_size=300, chat_template="plain"),
        objective=ObjectiveConfig(kind="sft"),
    )
"""


@pytest.fixture
def chats(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"name {i}", "completion": word, "task": word} for i in range(20) for word in ("self", "total")]
    rows.append({"prompt": "while", "completion": "x y z " * 90, "task": "long"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    path = tmp_path / "chats.py"
    path.write_text(CHATS.format(path=str(tmp_path / "rows.jsonl")))
    return path


def test_it_counts_the_examples_of_each_task_and_what_was_left_out(chats, capsys, monkeypatch):
    monkeypatch.setattr("jaxllm.data.loader.loader_speed", lambda _: 123456.0)
    assert run([str(chats), "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 42 documents could not be used, and were left out" in printed
    assert re.search(r"\nleft out: .*rows\.jsonl:42: not JSON", printed)
    assert "1 conversations longer than a row were cut to one" in printed
    row = r" +│ +(\d+) │ +(\d+) │ +(\d+) │ +(\d+) │ +(\d+\.\d\d)%"
    counts = {name: re.search(name + row, printed) for name in TASKS}
    for name in ("self", "total"):
        train, held_out, tokens, trained = map(int, counts[name].groups()[:4])
        assert train + held_out == 20
        assert 0 < trained < tokens
    assert sum(float(found[5]) for found in counts.values()) == pytest.approx(100, abs=0.02)


def test_bad_rows_are_told_of_with_the_option_that_leaves_them_out(chats):
    with pytest.raises(UserError, match=r"1 of 42 documents cannot be used:\n .*\n.*--skip-bad"):
        run([str(chats)])


def test_rows_are_shown_with_brackets_around_what_is_trained(chats, capsys):
    assert run(["show", str(chats), "--skip-bad", "--task", "self", "--rows", "2"]) == 0
    printed, told = capsys.readouterr()
    assert "\n[1 of 42 documents could not be used, and were left out]\n" in told
    assert printed.count("task 'self'") == 2
    piece = r"-- rows\.jsonl:\d+, all of its \d+ tokens\n<s>### Instruction:\nname \d+\n\n### .*\n⟦self</s>⟧"
    shown = re.findall(piece, printed)
    assert len(shown) == printed.count("-- rows.jsonl") == printed.count("⟦") > 1
    assert run(["show", str(chats), "--skip-bad", "--task", "self", "--split", "held_out", "--rows", "1"]) == 0
    other = capsys.readouterr().out
    assert not set(re.findall(r"rows\.jsonl:\d+", other)) & set(re.findall(r"rows\.jsonl:\d+", printed))


def test_a_row_that_was_cut_says_so_and_a_split_that_is_empty_too(chats, capsys):
    assert run(["show", str(chats), "--skip-bad", "--task", "long"]) == 0
    assert re.search(r"-- rows\.jsonl:41, tokens 1 to 49 of \d+, cut\n", capsys.readouterr().out)
    with pytest.raises(UserError, match="--split held_out: there is no such row of the task 'long'"):
        run(["show", str(chats), "--skip-bad", "--task", "long", "--split", "held_out"])


def test_on_a_terminal_what_is_trained_is_in_colour(chats, capsys, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(["show", str(chats), "--skip-bad", "--rows", "1"])
    printed = capsys.readouterr().out
    assert "⟦" not in printed
    assert re.search(r"\x1b\[1;32m(self|total)", printed)
    monkeypatch.setenv("NO_COLOR", "1")
    run(["show", str(chats), "--skip-bad", "--rows", "1"])
    assert "⟦" in capsys.readouterr().out


def test_what_cannot_be_shown_is_told_with_what_can(chats):
    with pytest.raises(UserError, match="--task slef: there is no such task; the nearest are self, "):
        run(["show", str(chats), "--skip-bad", "--task", "slef"])
    with pytest.raises(UserError, match="--rows 0: must be at least 1"):
        run(["show", str(chats), "--skip-bad", "--rows", "0"])


@pytest.mark.parametrize(
    ("kind", "architecture", "shown"),
    [
        ("causal", "decoder", r"-- \d+\.txt, tokens \d+ to \d+ of \d+\n"),
        ("masked", "encoder", r"<mask>"),
        ("span_corruption", "encoder_decoder", r"<extra_id_0>(.*\n)*-- and writes\n⟦<extra_id_0>"),
    ],
)
def test_rows_of_every_objective_are_shown(recipe, capsys, kind, architecture, shown):
    extra = ["<mask>", *(f"<extra_id_{i}>" for i in range(9))]
    tokens = ["--tokenizer.extra-tokens", *extra, "--tokenizer.vocab-size", "310"]
    assert run(["show", str(recipe), "--objective.kind", kind, "--model.architecture", architecture, *tokens]) == 0
    printed = capsys.readouterr().out
    assert re.search(shown, printed)
    assert "⟦" in printed
