import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.layers.dropout import dropout

KEY = jax.random.key(0)
X = jnp.ones((1000, 100))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(rate):
    out = np.asarray(dropout(X, rate, KEY))
    spread = np.sqrt(rate * (1 - rate) / X.size)
    assert abs(np.mean(out == 0) - rate) < 5 * spread
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)


def test_one_key_drops_the_same_elements_and_another_key_others():
    np.testing.assert_array_equal(dropout(X, 0.5, KEY), dropout(X, 0.5, KEY))
    assert np.mean(dropout(X, 0.5, KEY) == dropout(X, 0.5, jax.random.key(1))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("rate", "key"), [(0.0, KEY), (0.5, None)])
def test_without_a_rate_or_a_key_nothing_is_computed(rate, key):
    assert dropout(X, rate, key) is X


def test_the_gradient_passes_through_what_was_kept():
    gradient = jax.grad(lambda x: dropout(x, 0.5, KEY).sum())(X)
    np.testing.assert_array_equal(gradient, dropout(X, 0.5, KEY))


def test_the_type_is_kept():
    assert dropout(X.astype(jnp.bfloat16), 0.1, KEY).dtype == jnp.bfloat16
