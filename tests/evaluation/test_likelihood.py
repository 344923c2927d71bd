"""Likelihoods, held against the logits of each text alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.evaluation import likelihood
from jaxllm.evaluation.likelihood import Request, Scorer, encode_pair, windows
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, decode
from tests.generation.conftest import CONFIGS, LLAMA, random_params


@jax.jit
def logits_of(params, ids):
    return head_logits(params, decode(Transformer(LLAMA), params, ids[None]).hidden[0], LLAMA)


def alone(params, request, logits_of=logits_of):
    """The log-probabilities of one continuation, by the softmax of all logits; and the greedy choices."""
    ids = [*request.context, *request.continuation]
    padded = np.zeros(LLAMA.max_positions, np.int32)
    padded[: len(ids)] = ids
    logits = np.asarray(logits_of(params, padded), np.float64)[len(request.context) - 1 : len(ids) - 1]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    own = log_probs[np.arange(len(request.continuation)), list(request.continuation)]
    return own.sum(), logits.argmax(axis=-1).tolist()


def greedy(params, context, n):
    """What the greedy choice writes."""
    ids = [*context]
    for _ in range(n):
        ids.append(alone(params, Request(ids, [0]))[1][0])
    return ids[len(context) :]


def test_every_way_of_reading_gives_the_likelihood_of_the_text_alone(params, scorer, draw, monkeypatch):
    """Lone continuations, ones that differ in their last token only, and ones that a context is read once for, whose
    lengths differ, of which some are one token; in several batches of each."""
    monkeypatch.setattr(scorer, "_at_once", 64)
    monkeypatch.setattr(scorer, "_slots", 96)
    monkeypatch.setattr(scorer, "_chunk", 8)
    shared, short = draw(20), draw(1)
    written = greedy(params, shared, 3)
    requests = [Request(draw(n), draw(m)) for n, m in ((1, 1), (30, 9), (3, 40), (55, 9))]
    requests += [Request(short, [*requests[0].continuation, token]) for token in draw(3)]
    requests += [Request(shared, draw(n)) for n in (1, 2, 7, 20)] + [Request(shared, written), Request(shared, draw(1))]
    requests += [Request(context, draw(n)) for context in (draw(40), draw(11), draw(5)) for n in (3, 12)]
    order = np.random.default_rng(1).permutation(len(requests))
    requests = [requests[i] for i in order]
    texts, families = likelihood._planned(requests)
    assert (len(texts), len(families)) == (5, 4)
    told = []
    scores = scorer.score(requests, told.append)
    expected = [alone(params, request) for request in requests]
    np.testing.assert_allclose([s.log_prob for s in scores], [e[0] for e in expected], rtol=1e-5, atol=1e-4)
    is_greedy = [e[1] == list(r.continuation) for e, r in zip(expected, requests, strict=True)]
    assert [s.is_greedy for s in scores] == is_greedy
    assert sum(is_greedy) >= 1
    assert told[-1] == sum(len(request.continuation) for request in requests)


@pytest.mark.parametrize("name", ["window", "learned positions", "soft-caps"])
def test_models_of_every_kind_are_scored(name, draw):
    config = CONFIGS[name]
    params = random_params(config)
    model = Transformer(config)

    @jax.jit
    def logits_of(params, ids):
        return head_logits(params, decode(model, params, ids[None]).hidden[0], config)

    context = draw(30)
    requests = [Request(context, draw(5)), Request(context, draw(9)), Request(draw(12), draw(8))]
    expected = [alone(params, request, logits_of)[0] for request in requests]
    scores = Scorer(config, params).score(requests)
    np.testing.assert_allclose([s.log_prob for s in scores], expected, rtol=1e-5, atol=1e-4)


def test_no_array_holds_the_logits_of_all_places(scorer):
    """But the head's own program, whose places are those that are asked for."""
    rows = [np.zeros((1, 512), np.int32)] * 3
    read = scorer._read.lower(scorer._params, *rows).as_text()
    assert f"x{LLAMA.vocab_size}xf32" not in read
    places = [np.zeros(8, np.int32)] * 3
    head = scorer._head.lower(scorer._params, np.zeros((1, 512, LLAMA.width), np.float32), *places).as_text()
    assert f"tensor<8x{LLAMA.vocab_size}xf32>" in head
    assert f"512x{LLAMA.vocab_size}" not in head


def test_windows_predict_each_token_once(draw):
    ids = draw(23)
    for window, stride in ((8, 8), (8, 3), (8, 7), (30, 30), (2, 1), (23, 23), (22, 22)):
        found = windows(ids, window, stride)
        assert all(len(r.context) + len(r.continuation) <= window for r in found)
        starts = [ids.index(r.context[0]) for r in found]
        assert all(start % stride == 0 for start in starts)
        predicted = [token for r in found for token in r.continuation]
        never = [ids[i] for i in range(0, 23, window)] if stride == window else ids[:1]
        assert predicted == [token for token in ids if token not in never]
        assert all(
            ids[s : s + len(r.context) + len(r.continuation)] == [*r.context, *r.continuation]
            for s, r in zip(starts, found, strict=True)
        )
    assert windows(ids[:1], 8, 8) == []


@pytest.mark.parametrize(
    ("window", "stride", "complaint"),
    [(1, 1, "--window: expected 2 or more, got 1"), (8, 9, r"--stride: expected 1 to 8 \(--window\), got 9")],
)
def test_windows_that_will_not_do_are_named(window, stride, complaint):
    with pytest.raises(UserError, match=complaint):
        windows([1, 2, 3], window, stride)


def test_pairs_are_encoded_as_one_text(tokenizer):
    for context, continuation in (
        ("the quick ", "fox"),
        ("the quick", " fox"),
        ("the qui", "ck fox"),
        ("the\n\n", "dog"),
    ):
        before, after = encode_pair(tokenizer.encode, context, continuation)
        assert before == tokenizer.encode(context.rstrip())
        assert after
        assert len(before) + len(after) == len(tokenizer.encode(context + continuation))
    assert tokenizer.decode(encode_pair(tokenizer.encode, "the quick  ", "fox")[1]) == "  fox"


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request([], [1]), "request 2: a context and a continuation have at least one token each"),
        (Request([1], []), "request 2: a context and a continuation have at least one token each"),
        (Request([1] * 60, [1] * 6), "request 2 has 65 tokens to read; the model reads 64"),
        (Request([1], [340]), "request 2 has token 340, but the model's vocabulary has 340"),
    ],
)
def test_requests_that_will_not_do_are_named(scorer, request_, complaint):
    with pytest.raises(UserError, match=complaint):
        scorer.score([Request([1] * 60, [1] * 5), request_])


def test_only_a_decoder_has_likelihoods(params):
    with pytest.raises(UserError, match="'encoder': likelihoods are of texts of a decoder"):
        Scorer(replace(LLAMA, architecture="encoder"), params)
