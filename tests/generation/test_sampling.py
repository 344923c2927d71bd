import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest,
    penalise,
    sample,
    settings_of,
)

DRAWS = 40_000
random = np.random.default_rng(0)


def kept(logits):
    """Which tokens are left, row by row."""
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(logits)]


def log_of(*probabilities):
    return jnp.log(jnp.asarray([probabilities], jnp.float32))


def frequencies(logits, seen=None, **settings):
    """How often each token of one row of logits is drawn with `settings`."""
    logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, len(logits)))
    seen = jnp.broadcast_to(False if seen is None else jnp.asarray(seen), logits.shape)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    tokens = jax.jit(sample)(logits, seen, keys, settings_of(SamplingConfig(**settings)))
    return np.bincount(tokens, minlength=logits.shape[1]) / DRAWS


def softmax(x):
    weights = np.exp(x - np.max(x))
    return weights / weights.sum()


def by_sorting(logits, seen, temperature, top_k, top_p, min_p, penalty):
    """The distribution that transformers' processors leave of one row, in float64, by sorting as they do."""
    x = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits) / temperature
    x[x < np.sort(x)[-top_k]] = -np.inf
    order = np.argsort(x)
    p = softmax(x[order])
    out = np.cumsum(p) <= 1 - top_p
    out[-1] = False
    x[order[out]] = -np.inf
    p = softmax(x)
    x[p < min_p * p.max()] = -np.inf
    return softmax(x)


def test_draws_follow_the_softmax():
    logits = np.log([0.4, 0.3, 0.15, 0.1, 0.05, 1e-30])
    found = frequencies(logits)
    np.testing.assert_allclose(found, softmax(logits), atol=0.01)
    assert found[-1] == 0


@pytest.mark.parametrize(
    "settings", [(0.5, 8, 1.0, 0.0), (2.0, 3, 1.0, 0.0), (1.0, 8, 0.7, 0.0), (1.0, 8, 1.0, 0.3), (1.5, 6, 0.9, 0.2)]
)
def test_draws_follow_what_the_processors_leave(settings):
    temperature, top_k, top_p, min_p = settings
    logits, seen = random.normal(size=8) * 2, np.arange(8) % 3 == 0
    expected = by_sorting(logits, seen, *settings, penalty=1.3)
    found = frequencies(
        logits, seen, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=1.3
    )
    np.testing.assert_allclose(found, expected, atol=0.012)
    assert not found[expected == 0].any()


def test_all_together_leave_the_same_tokens_as_sorting_does():
    """A vocabulary of real size, where each processor drops tokens that the one before it left."""
    logits = (random.normal(size=(4, 32_000)) * 3).astype(np.float32)
    seen = random.random(logits.shape) < 0.5
    expected = [
        np.flatnonzero(by_sorting(x, s, 0.7, 500, 0.9, 0.01, 1.2)).tolist() for x, s in zip(logits, seen, strict=True)
    ]
    left = [keep_top_k(penalise(logits, seen, 1.2) / 0.7, 500)]
    for then, p in ((keep_top_p, 0.9), (keep_min_p, 0.01)):
        left.append(then(left[-1], p))
    assert kept(left[-1]) == expected
    assert all(
        len(a) > len(b) > 1
        for before, after in itertools.pairwise(left)
        for a, b in zip(kept(before), kept(after), strict=True)
    )


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [4]), (2, [0, 4, 5]), (3, [0, 4, 5]), (4, [0, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])],
)
def test_top_k_keeps_ties_with_the_last_and_orders_both_signs_and_zero(k, expected):
    logits = jnp.asarray([[1.5, -3.0, -1e-30, 0.0, 7.0, 1.5]])
    assert kept(keep_top_k(logits, k)) == [expected]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-6, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.74, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.9, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_holds_it(p, expected):
    assert kept(keep_top_p(log_of(0.125, 0.5, 0.124, 0.25), p)) == [expected]


@pytest.mark.parametrize(("p", "count"), [(0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_cuts_at_the_boundary_and_keeps_the_first_of_equals(p, count):
    assert kept(keep_top_p(jnp.zeros((2, 4)), p)) == [list(range(count))] * 2


def test_min_p_is_relative_to_the_likeliest():
    logits = log_of(0.5, 0.26, 0.24) + 3.0
    assert kept(keep_min_p(logits, 0.5)) == [[0, 1]]
    assert kept(keep_min_p(logits, 1.0)) == [[0]]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = jnp.asarray([[2.0, -2.0, 2.0, -2.0]])
    seen = jnp.asarray([[True, True, False, False]])
    np.testing.assert_allclose(penalise(logits, seen, 2.0), [[1.0, -4.0, 2.0, -2.0]])


def test_the_likeliest_is_the_first_of_equals():
    logits = jnp.asarray([[1.0, 3.0, 3.0], [-2.0, -1.0, -5.0]])
    assert likeliest(logits).tolist() == [1, 1]


def test_at_temperature_zero_the_penalty_holds_and_the_key_does_not_matter():
    logits = jnp.asarray([[3.0, 2.9, 0.0]] * 50)
    seen = jnp.asarray([[True, False, False]] * 50)
    keys = jax.random.split(jax.random.key(0), 50)
    for penalty, token in ((1.0, 0), (1.1, 1)):
        settings = settings_of(SamplingConfig(temperature=0, top_k=2, repetition_penalty=penalty))
        assert sample(logits, seen, keys, settings).tolist() == [token] * 50


def test_a_row_depends_on_its_own_key_alone():
    logits = jnp.asarray(random.normal(size=(5, 300)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 5)
    together = draw(logits, keys)
    assert len(set(together.tolist())) > 2
    assert [draw(logits[i : i + 1], keys[i : i + 1]).item() for i in range(5)] == together.tolist()


def test_tokens_of_no_probability_are_never_drawn_however_many_there_are():
    allowed = np.arange(32_000) % 1000 == 17
    logits = jnp.where(allowed, 0.0, -jnp.inf) * jnp.ones((200, 1))
    tokens = draw(logits, jax.random.split(jax.random.key(0), 200))
    assert set(tokens.tolist()) <= set(np.flatnonzero(allowed))
    assert len(set(tokens.tolist())) == 32


def test_one_program_serves_all_settings():
    compiled = jax.jit(chex.assert_max_traces(sample, n=1))
    inputs = jnp.zeros((2, 9)), jnp.zeros((2, 9), bool), jax.random.split(jax.random.key(0), 2)
    for settings in (SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(top_k=3, top_p=0.5, min_p=0.1)):
        compiled(*inputs, settings_of(settings))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_setting_out_of_its_range_is_named_with_its_value(field, value):
    with pytest.raises(UserError, match=f"'{field}': expected .*, got {value}"):
        SamplingConfig(**{field: value}).check()
