"""Embeddings of texts that are packed into rows, held against the model's hidden states of each text alone."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.generation.embedding import Embedder, Pooling, published_pooling
from jaxllm.models.presets import MINILM_L6
from jaxllm.models.transformer import Transformer, encode
from tests.generation.conftest import random_params

TEXTS = ["the quick", "fox " * 30, "", "lazy dogs jump", "a " * 60, "one"]
SMALL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "head_dim": 8, "ffn": 48, "max_positions": 160}


@pytest.fixture(scope="module")
def config(tokenizer):
    return replace(MINILM_L6, vocab_size=tokenizer.vocab_size, init_std=0.3, **SMALL)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def hidden(config, params, tokenizer):
    """`[T, D]` of each text alone."""
    rows = [[tokenizer.bos_id, *ids[:158], tokenizer.eos_id] for ids in tokenizer.encode_batch(TEXTS)]
    return [encode(Transformer(config), params, jnp.asarray([row])).hidden[0] for row in rows]


EXPECTED = {
    "mean": lambda hidden, params: jnp.mean(hidden, axis=0),
    "first": lambda hidden, params: hidden[0],
    "pooler": lambda hidden, params: jnp.tanh(hidden[0] @ params["pooler"]["kernel"] + params["pooler"]["bias"]),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_text_of_a_row_has_the_vector_that_it_has_alone(config, params, tokenizer, hidden, kind):
    expected = np.stack([EXPECTED[kind](states, params) for states in hidden])
    embedder = Embedder(config, params, tokenizer, Pooling(kind=kind, normalise=False))
    found = embedder.embed(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    unit = Embedder(config, params, tokenizer, Pooling(kind=kind)).embed(TEXTS)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-5)


def test_progress_counts_the_texts(config, params, tokenizer):
    told = []
    Embedder(config, params, tokenizer, Pooling()).embed(TEXTS, told.append)
    assert told == sorted(told)
    assert told[-1] == len(TEXTS)


def test_a_pooler_that_is_not_there_is_told(config, params, tokenizer):
    without = replace(config, pooler=False)
    with pytest.raises(UserError, match=r"--pooling\.kind pooler: this model has none; mean or first would do"):
        Embedder(without, params, tokenizer, Pooling(kind="pooler"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("1_Pooling/config.json", "{bad", r"config\.json' is not JSON"),
        ("1_Pooling/config.json", "[1]", r"config\.json': expected an object, got \[1\]"),
        ("modules.json", "{}", r"modules\.json': expected a list, got {}"),
        ("sentence_bert_config.json", '{"max_seq_length": "8"}', r"max_seq_length = '8': expected a whole number"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, complaint):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert published_pooling(tmp_path) == Pooling(normalise=False)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        published_pooling(tmp_path)
