"""Perplexity of whole texts, held against the loss that trains."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import PromptConfig, TuningConfig, UserError
from jaxllm.evaluation.perplexity import perplexity, read_texts
from jaxllm.models.transformer import Transformer
from jaxllm.objectives.token_loss import token_loss
from tests.generation.conftest import LLAMA

TEXTS = ["the quick brown fox jumps over the lazy dog ☺ " * 3, "one", "by one"]


@pytest.fixture
def model(plain, scorer):
    plain.__dict__["scorer"] = scorer  # whose programs are compiled
    return plain


@jax.jit
def loss(params, tokens, targets, weights):
    shared = {"segments": jnp.ones_like(tokens), "positions": jnp.arange(tokens.shape[1])[None]}
    batch = {"tokens": tokens, "targets": targets, "weights": weights, **shared}
    return token_loss(Transformer(LLAMA), params, batch, None, chunk=64)[:2]


def trained_loss(params, ids):
    """The sum of the loss of one row, and of its weights."""
    pairs = np.zeros((3, 1, 32))
    pairs[:, 0, : len(ids) - 1] = ids[:-1], ids[1:], np.ones(len(ids) - 1)
    return np.array(loss(params, *pairs[:2].astype(np.int32), pairs[2].astype(np.float32)))


def test_windows_without_overlap_are_what_the_loss_of_training_says(model, params):
    ids = model.tokenizer.encode_batch(TEXTS)
    rows = [own[start : start + 20] for own in ids for start in range(0, len(own), 20)]
    nats, tokens = sum(trained_loss(params, row) for row in rows if len(row) > 1)
    found = perplexity(model, TEXTS, 20)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    size = sum(len(text.encode()) for text in TEXTS) * tokens / sum(map(len, ids))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_virtual_tokens_take_places_of_a_text(plain):
    tuning = TuningConfig(method="prompt", prompt=PromptConfig(length=5))
    tuned = replace(plain, config=replace(plain.config, tuning=tuning))
    assert (plain.reads, tuned.reads) == (LLAMA.max_positions, LLAMA.max_positions - 5)
    with pytest.raises(UserError, match=f"--window {plain.reads}: the model reads {tuned.reads} tokens"):
        perplexity(tuned, TEXTS, plain.reads)


def test_a_model_that_begins_texts_predicts_their_first_token_too(model, params):
    config = replace(model.config, tokenizer=replace(model.config.tokenizer, begins_prompts=True))
    begins = replace(model, config=config)
    begins.__dict__["scorer"] = model.scorer
    nats, tokens = trained_loss(params, [model.tokenizer.bos_id, *model.tokenizer.encode(TEXTS[2])])
    found = perplexity(begins, TEXTS[2:])
    assert (found.tokens, found.bytes) == (tokens, len(TEXTS[2]))
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_progress_is_told_in_tokens(model):
    told = []
    found = perplexity(model, TEXTS, 16, 8, lambda tokens: told.append(tokens) or told.append)
    assert told[0] == told[-1] == found.tokens
    assert found.tokens == sum(len(own) - 1 for own in model.tokenizer.encode_batch(TEXTS))


def test_what_will_not_do_is_told(model):
    with pytest.raises(UserError, match=r"--window 65: the model reads 64 tokens \(max_positions, less"):
        perplexity(model, TEXTS, 65)
    with pytest.raises(UserError, match=r"--stride: expected 1 to 8 \(--window\), got 9"):
        perplexity(model, TEXTS, 8, 9)
    with pytest.raises(UserError, match="the text has but one token"):
        perplexity(model, [model.tokenizer.decode([300])])


def test_a_plain_file_is_one_text_and_each_row_is_one(tmp_path):
    long = "".join(f"line {n} of a long file#{n}\n" for n in range(6000))
    (tmp_path / "long#1.txt").write_text(long)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in [*TEXTS, ""]))
    (tmp_path / "none.md").write_text("")
    assert len(long) > 2 * 65_536
    assert read_texts(str(tmp_path / "long#1.txt"), "text") == [long]
    (tmp_path / "NOTES").write_text("a\n")
    assert read_texts(str(tmp_path / "NOTES"), "text") == ["a\n"]
    with pytest.raises(UserError, match=r"no such file or folder: '.*GONE'"):
        read_texts(str(tmp_path / "GONE"), "text")
    assert read_texts(str(tmp_path / "rows.jsonl"), "body") == TEXTS
    with pytest.raises(UserError, match=r"--text .*none\.md: there is no text in it"):
        read_texts(str(tmp_path / "none.md"), "text")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: no field 'text'; it has body"):
        read_texts(str(tmp_path / "rows.jsonl"), "text")
