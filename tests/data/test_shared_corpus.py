"""A corpus in several processes: on file systems that they share, and on disks of their own."""

from dataclasses import replace

import numpy as np
import pytest

from jaxllm.config import TokenizerConfig
from jaxllm.data import corpus as corpus_module
from jaxllm.data.corpus import prepare_corpus, shared_corpus
from tests.together import together


@pytest.fixture
def prepared(monkeypatch):
    """The cache folder of each preparation."""
    folders = []

    def prepare(data, *args, **kwargs):
        folders.append(data.cache_dir)
        return prepare_corpus(data, *args, **kwargs)

    monkeypatch.setattr(corpus_module, "prepare_corpus", prepare)
    return folders


def same(a, b):
    return a.key == b.key and all(
        np.array_equal(x.tokens, y.tokens) and np.array_equal(x.index, y.index)
        for x, y in zip((*a.train, *a.validation), (*b.train, *b.validation), strict=True)
    )


@pytest.mark.parametrize("trained", [True, False])
def test_one_process_prepares_what_all_open(data, model_path, prepared, trained):
    tokenizer = TokenizerConfig(vocab_size=420, path=None if trained else str(model_path))
    (first, did), *others = together(3, lambda processes: shared_corpus(data, tokenizer, processes))
    assert len(prepared) == 1
    assert did
    for corpus, did in others:
        assert not did
        assert same(corpus, first)
        assert corpus.report == first.report
        assert corpus.tokenizer_path == first.tokenizer_path
    assert not list(first.root.glob(".process-*"))


def test_each_disk_is_prepared_by_one_of_those_that_see_it(data, model_path, prepared, tmp_path):
    def open_own(processes):
        own = replace(data, cache_dir=str(tmp_path / f"disk{processes.index // 2}"))
        return shared_corpus(own, TokenizerConfig(path=str(model_path)), processes)

    opened = together(4, open_own)
    assert [did for _, did in opened] == [True, False, True, False]
    assert sorted(prepared) == [str(tmp_path / "disk0"), str(tmp_path / "disk1")]
    assert all(same(corpus, opened[0][0]) for corpus, _ in opened)


def test_another_text_on_another_disk_is_told_with_the_host(data, model_path, tmp_path, texts):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("one\n")
    (other / "b.txt").write_text("two\n")

    def open_own(processes):
        own = replace(data, cache_dir=str(tmp_path / f"disk{processes.index}"))
        if processes.index == 1:
            own = replace(own, sources=(replace(data.sources[0], path=str(other)),))
        return shared_corpus(own, TokenizerConfig(path=str(model_path)), processes)

    for error in together(2, open_own):
        assert str(error).startswith("process 1 (host1) has another text or tokenizer than process 0 (host0): ")
