import dataclasses
import itertools

import numpy as np
import pytest

from jaxllm.config import ObjectiveConfig, TokenizerConfig
from jaxllm.data.corpus import Documents, prepare_corpus
from jaxllm.data.frequencies import unigram_loss
from jaxllm.data.loader import Loader


def targets(documents: Documents) -> np.ndarray:
    """All tokens but the first of each document."""
    return np.concatenate([documents.tokens[a + 1 : b] for a, b in itertools.pairwise(documents.starts)])


def test_it_is_the_cross_entropy_of_the_held_out_tokens_under_the_counts_of_the_training_ones(corpus, data):
    counts = 1 + np.bincount(np.concatenate(list(map(targets, corpus.train))), minlength=corpus.tokenizer.vocab_size)
    expected = -np.log(counts / counts.sum())[targets(corpus.validation[0])].mean()
    assert unigram_loss(Loader(corpus, data, batch_size=1, seed=0)) == pytest.approx(expected, rel=1e-6)


def test_only_targets_with_weight_count(corpus, data):
    """Of a prefix none is; what follows has nearly the same frequencies."""
    prefix = Loader(corpus, data, 1, 0, ObjectiveConfig(kind="prefix"))
    assert unigram_loss(prefix) == pytest.approx(unigram_loss(Loader(corpus, data, 1, 0)), rel=0.05)


def test_without_held_out_text_there_is_none(data, model_path):
    data = dataclasses.replace(data, validation_fraction=0.0)
    corpus = prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert unigram_loss(Loader(corpus, data, batch_size=4, seed=0)) is None
