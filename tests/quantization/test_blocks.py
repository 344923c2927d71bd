"""Matrices in int8 and NF4."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.adapters import block_size
from jaxllm.quantization.blocks import LEVELS, dequantized, quantized

X = np.random.default_rng(0).normal(size=(3, 256, 192)).astype(np.float32)


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8.25, 0.006), ("nf4", 4.25, 0.092)])
def test_each_kind_takes_the_bits_and_has_the_error_that_it_states(kind, bits, error):
    made = quantized(jnp.asarray(X), kind, 64)
    assert 8 * sum(x.nbytes for x in made) / X.size == bits
    found = np.asarray(dequantized(made, jnp.float32))
    assert np.sqrt(np.mean((found - X) ** 2) / np.mean(X**2)) == pytest.approx(error, rel=0.03)


def test_nf4_takes_the_nearest_level():
    x = jnp.asarray(X[0])
    scales = np.asarray(quantized(x, "nf4", 64).scales, np.float32)
    shares = X[0].reshape(256, 3, 64) / scales[..., None]
    nearest = LEVELS[np.abs(shares[..., None] - LEVELS).argmin(-1)] * scales[..., None]
    np.testing.assert_allclose(dequantized(quantized(x, "nf4", 64), jnp.float32), nearest.reshape(256, 192), atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_was_quantized_stays_as_it_is(kind):
    once = dequantized(quantized(jnp.asarray(X), kind, 64), jnp.float32)
    np.testing.assert_allclose(dequantized(quantized(once, kind, 64), jnp.float32), once, rtol=1e-2, atol=1e-6)
    zeros = jnp.zeros((2, 64))
    np.testing.assert_array_equal(dequantized(quantized(zeros, kind, 64), jnp.float32), zeros)


def test_a_block_is_the_largest_even_divisor():
    assert [block_size(n) for n in (64, 576, 96, 8, 100, 33)] == [64, 64, 48, 8, 50, 33]
