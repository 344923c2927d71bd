import dataclasses
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from jaxllm.config import DataConfig, SourceConfig, TokenizerConfig, UserError
from jaxllm.data import corpus as corpus_module
from jaxllm.data import tokenising
from jaxllm.data.corpus import Corpus, Documents, prepare_corpus
from jaxllm.data.split import share_of


def text_of(corpus: Corpus, documents: Documents, d: int) -> str:
    ids = documents.tokens[documents.starts[d] : documents.starts[d + 1]]
    assert (ids[0], ids[-1]) == (corpus.tokenizer.bos_id, corpus.tokenizer.eos_id)
    return corpus.tokenizer.decode(ids[1:-1])


def contents(corpus: Corpus) -> list[dict[str, str]]:
    """{name: text} of each training source and of the held-out documents."""
    splits = [*([documents] for documents in corpus.train), corpus.validation]
    return [{s.name(d): text_of(corpus, s, d) for s in split for d in range(len(s))} for split in splits]


@pytest.fixture
def untouched(monkeypatch):
    """From here on, reading or tokenising a document fails."""

    def prepare(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(corpus_module, "survey", lambda *_: pytest.fail("the sources were read again"))
            return prepare_corpus(*args, **kwargs)

    return prepare


def test_every_document_is_there_once_with_its_text_on_the_side_of_its_name(corpus, texts):
    (training, held_out) = contents(corpus)
    assert training | held_out == {p.name: p.read_text() for p in texts.iterdir()}
    assert set(held_out) == {p.name for p in texts.iterdir() if share_of(p.name) < 0.2}
    assert list(training) == sorted(training)


def test_bytes_and_counts_add_up(corpus, texts):
    training, held_out = contents(corpus)
    assert corpus.held_out_bytes == sum(len(text.encode()) for text in held_out.values())
    report = corpus.report
    assert (report.documents, report.held_out) == (40, len(held_out))
    assert (report.duplicates, report.empty) == (0, 0)
    assert (
        report.bytes == corpus.held_out_bytes + corpus.train[0].bytes == sum(p.stat().st_size for p in texts.iterdir())
    )
    assert report.tokens == sum(len(corpus.tokenizer.encode(t)) for side in (training, held_out) for t in side.values())
    assert report.bytes_per_token == report.bytes / report.tokens


def test_sources_stay_apart_and_duplicates_between_them_are_dropped(texts, tmp_path, model_path):
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("new one", (texts / "doc03.txt").read_text(), "", "new two"))
    )
    sources = (
        SourceConfig(kind="jsonl", path=str(tmp_path / "more.jsonl")),
        SourceConfig(kind="text", path=str(texts)),
    )
    corpus = prepare_corpus(DataConfig(sources=sources, validation_fraction=0), TokenizerConfig(path=str(model_path)))
    first, second, held_out = contents(corpus)
    assert list(first) == ["more.jsonl:1", "more.jsonl:2", "more.jsonl:4"]
    assert len(second) == 39
    assert "doc03.txt" not in second
    assert held_out == {}
    assert corpus.held_out_bytes == 0
    assert (corpus.report.duplicates, corpus.report.empty) == (1, 1)


def test_a_pair_is_its_two_texts_with_an_end_after_each(tmp_path, model_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"x": f"value {i}", "y": f"name {i}" * i}) + "\n" for i in range(5)))
    source = SourceConfig(kind="jsonl", path=str(path), field="x", target_field="y")
    corpus = prepare_corpus(DataConfig(sources=(source,), validation_fraction=0), TokenizerConfig(path=str(model_path)))
    (documents,), encode = corpus.train, corpus.tokenizer.encode
    assert corpus.report.empty == 1
    expected = [[1, *encode(f"value {i}"), 2, *encode(f"name {i}" * i), 2] for i in range(1, 5)]
    assert [documents.tokens[a:b].tolist() for a, b in itertools.pairwise(documents.starts)] == expected
    assert corpus.report.tokens == sum(map(len, expected)) - 3 * 4
    assert documents.bytes == sum(len(f"value {i}") + len(f"name {i}" * i) for i in range(1, 5))


def test_a_text_that_makes_the_end_of_a_pair_is_named(tmp_path):
    model = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "pairs.jsonl").write_text('{"x": "a", "y": "a a"}\n{"x": "a </s>", "y": "a"}')
    source = SourceConfig(kind="jsonl", path=str(tmp_path / "pairs.jsonl"), field="x", target_field="y")
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: its text makes the token that ends the parts of a pair"):
        prepare_corpus(
            DataConfig(sources=(source,), validation_fraction=0), TokenizerConfig(path=str(tmp_path / "tokenizer.json"))
        )


def test_a_second_preparation_reads_no_document(corpus, data, model_path, untouched):
    again = untouched(data, TokenizerConfig(path=str(model_path)))
    assert again.key == corpus.key
    assert again.report == corpus.report
    assert contents(again) == contents(corpus)
    trained = prepare_corpus(data, TokenizerConfig(vocab_size=320))
    assert untouched(data, TokenizerConfig(vocab_size=320)).tokenizer_path == trained.tokenizer_path


def test_a_changed_file_is_noticed_even_with_the_same_size_and_time(corpus, data, texts, model_path):
    path = texts / "doc07.txt"
    stat = path.stat()
    path.write_text(path.read_text().replace("e", "o"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert again.key != corpus.key
    assert {**contents(again)[0], **contents(again)[1]}["doc07.txt"] == path.read_text()


def test_another_tokenizer_share_or_field_is_another_corpus(corpus, data, model_path):
    keys = {corpus.key}
    keys.add(prepare_corpus(data, TokenizerConfig(vocab_size=320)).key)
    keys.add(prepare_corpus(data, TokenizerConfig(vocab_size=321)).key)
    keys.add(
        prepare_corpus(dataclasses.replace(data, validation_fraction=0.4), TokenizerConfig(path=str(model_path))).key
    )
    assert len(keys) == 4


def test_what_does_not_change_the_tokens_does_not_tokenise_again(corpus, data, model_path, untouched):
    source = dataclasses.replace(data.sources[0], weight=3.0)
    other = dataclasses.replace(data, sources=(source,), sequence_length=99, packing="concatenate", workers=1)
    assert untouched(other, TokenizerConfig(path=str(model_path))).key == corpus.key


def test_the_number_of_threads_does_not_change_the_result(data, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 500)
    found = []
    for workers in (1, 7):
        setting = dataclasses.replace(data, workers=workers, cache_dir=str(tmp_path / f"cache{workers}"))
        found.append(contents(prepare_corpus(setting, TokenizerConfig(path=str(model_path)))))
    assert found[0] == found[1]


def test_the_tokenizer_is_trained_on_the_training_split_only(data, texts):
    for path in texts.iterdir():
        letter = "held" if share_of(path.name) < 0.2 else "kept"
        path.write_text(path.read_text() + f"zq{letter} " * 50)
    tokenizer = prepare_corpus(data, TokenizerConfig(vocab_size=420)).tokenizer
    assert len(tokenizer.encode("zqkept")) == 1
    assert len(tokenizer.encode("zqheld")) > 1


def test_tokens_take_two_bytes_or_four_by_the_size_of_the_vocabulary(corpus, data, tmp_path):
    assert corpus.validation[0].tokens.dtype == np.uint16
    words = {"</s>": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, 70_000)}, "total": 70_000}
    model = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    wide = prepare_corpus(data, TokenizerConfig(path=str(tmp_path / "tokenizer.json")))
    assert wide.validation[0].tokens.dtype == np.uint32
    assert wide.validation[0].tokens.max() == 70_000


def test_an_interrupted_build_leaves_nothing_and_the_next_one_is_whole(data, model_path, cache, monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 500)
    add, calls = corpus_module.Writer.add, []

    def interrupted(self, *args):
        calls.append(add(self, *args))
        if len(calls) == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module.Writer, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert [p.suffix for p in (cache / "corpora").iterdir()] == [".lock"]
    assert prepare_corpus(data, TokenizerConfig(path=str(model_path))).report.documents == 40


def test_a_file_that_changes_while_it_is_read_is_named_and_nothing_is_kept(data, texts, model_path, cache, monkeypatch):
    path = texts / "doc00.txt"
    before, add = path.read_text(), corpus_module.Writer.add

    def changing(self, *args):
        path.write_text("changed " * 9)
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module.Writer, "add", changing)
        with pytest.raises(
            UserError, match=r"data\.sources\.0 \(.*texts\) has changed while it was read; .* run the same"
        ):
            prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert [p.suffix for p in (cache / "corpora").iterdir()] == [".lock"]
    path.write_text(before)
    assert prepare_corpus(data, TokenizerConfig(path=str(model_path))).report.documents == 40


def test_two_processes_that_prepare_at_once_both_end_well(data, model_path, cache):
    code = (
        "from jaxllm.config import *\nfrom jaxllm.data.corpus import prepare_corpus\n"
        f"corpus = prepare_corpus({data!r}, TokenizerConfig(vocab_size=320))\n"
        "print(corpus.key, corpus.tokenizer.fingerprint, corpus.report)"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [err for _, err in ends] == [""] * 3
    assert len({out for out, _ in ends}) == 1
    assert len([p for p in (cache / "corpora").iterdir() if p.is_dir()]) == 1


def test_a_damaged_cache_names_the_folder_to_delete(corpus, data, model_path, cache):
    (tokens,) = cache.glob("corpora/*/train-0.tokens")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"the data cache '{tokens.parent}' is damaged: 'train-0\.tokens' has"):
        prepare_corpus(data, TokenizerConfig(path=str(model_path)))


def test_a_full_disk_while_tokenising_leaves_nothing(data, model_path, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_module.Writer, "add", full)
    with pytest.raises(UserError, match=r"cannot write the data cache .*/corpora': No space left on device; make room"):
        prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert [p.suffix for p in (cache / "corpora").iterdir()] == [".lock"]


def test_a_bad_document_stops_the_build_and_is_named(data, texts, model_path, cache):
    (texts / "doc20.txt").write_bytes(b"\x89PNG\x00")
    with pytest.raises(UserError, match=r"doc20\.txt: not valid UTF-8 .* convert it, or take it out"):
        prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert [p.suffix for p in (cache / "corpora").iterdir()] == [".lock"]


def test_progress_goes_to_standard_error_and_only_when_asked_for(data, model_path, capfd, tmp_path):
    prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert capfd.readouterr() == ("", "")
    elsewhere = dataclasses.replace(data, cache_dir=str(tmp_path / "elsewhere"))
    prepare_corpus(elsewhere, TokenizerConfig(vocab_size=320), progress=True)
    assert capfd.readouterr().out == ""
