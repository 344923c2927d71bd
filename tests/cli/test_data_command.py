import re

import pytest

from jaxllm.cli.data import run

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
    assert re.search(r"0 empty, 1 pairs longer than a row", capsys.readouterr().out)
