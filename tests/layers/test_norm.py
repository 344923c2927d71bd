import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxllm.layers.norm import layer_norm, rms_norm

random = np.random.default_rng(0)
X = random.normal(3.0, 2.0, (2, 5, 16)).astype(np.float32)
SCALE, BIAS = random.normal(size=(2, 16)).astype(np.float32)
EPS = 1e-5


def test_rms_norm_has_its_closed_form():
    x = X.astype(np.float64)
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS) * SCALE
    np.testing.assert_allclose(rms_norm(X, SCALE, EPS), expected, rtol=2e-6, atol=2e-6)


def test_rms_norm_of_several_axes_is_that_of_all_their_numbers_at_once():
    """Queries of all heads (OLMo 2)."""
    x, scale = X.reshape(2, 5, 4, 4), SCALE.reshape(4, 4)
    np.testing.assert_allclose(rms_norm(x, scale, EPS), rms_norm(X, SCALE, EPS).reshape(x.shape), rtol=1e-6)


def test_layer_norm_has_its_closed_form():
    x = X.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * SCALE + BIAS
    np.testing.assert_allclose(layer_norm(X, SCALE, BIAS, EPS), expected, rtol=2e-6, atol=2e-6)


def test_layer_norm_survives_a_large_mean():
    """E[x^2] - E[x]^2 would keep no digit of the variance here."""
    shifted = layer_norm(X + np.float32(2**14), SCALE, BIAS, EPS)
    np.testing.assert_allclose(shifted, layer_norm(X, SCALE, BIAS, EPS), atol=5e-3)


@pytest.mark.parametrize("norm", [rms_norm, lambda x, s, e: layer_norm(x, s, BIAS, e)])
def test_statistics_of_bfloat16_inputs_are_float32(norm):
    x = jnp.asarray(X, jnp.bfloat16)
    out = norm(x, SCALE, EPS)
    assert out.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32), SCALE, EPS)
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_gradients_are_those_of_finite_differences():
    x = X[:1, :2]
    check_grads(lambda x, s: rms_norm(x, s, EPS), (x, SCALE), order=1, modes=["rev"], rtol=2e-2, eps=1e-2)
    check_grads(lambda *a: layer_norm(*a, EPS), (x, SCALE, BIAS), order=1, modes=["rev"], rtol=2e-2, eps=1e-2)
