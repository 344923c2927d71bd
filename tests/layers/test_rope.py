import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import RopeScaling
from jaxllm.layers.rope import apply_rope, rope_tables

H, THETA = 16, 10_000.0
q, k = np.random.default_rng(0).normal(size=(2, H)).astype(np.float32)


def rotate(x: np.ndarray, positions: np.ndarray, dtype=jnp.float32) -> jax.Array:
    """One vector at many positions: `[T, H]`."""
    tables = rope_tables(jnp.asarray(positions, jnp.int32)[None], H, THETA)
    x_BTNH = jnp.broadcast_to(jnp.asarray(x, dtype), (1, len(positions), 1, H))
    return apply_rope(x_BTNH, tables)[0, :, 0]


def test_a_pair_turns_by_position_over_wavelength():
    angle = 7 / THETA ** (np.arange(0, H, 2) / H)
    turned = (q[: H // 2] + 1j * q[H // 2 :]) * np.exp(1j * angle)
    np.testing.assert_allclose(rotate(q, [7])[0], np.concatenate([turned.real, turned.imag]), atol=1e-5)


def test_position_zero_changes_nothing():
    np.testing.assert_array_equal(rotate(q, [0])[0], q)


@pytest.mark.parametrize("shift", [1, 100, 3000])
def test_scores_depend_only_on_the_distance(shift):
    positions = np.arange(12)
    scores = rotate(q, positions) @ rotate(k, positions).T
    shifted = rotate(q, positions + shift) @ rotate(k, positions + shift).T
    np.testing.assert_allclose(shifted, scores, atol=5e-3)
    for distance in range(12):
        np.testing.assert_allclose(np.diag(scores, distance), scores[0, distance], atol=1e-5)
    assert np.ptp(scores) > 1


def test_neighbouring_positions_differ_in_bfloat16():
    """Position 257 is 256 in bfloat16: the angle must not be computed in it."""
    near, far = rotate(q, [256, 257], jnp.bfloat16)
    assert near.dtype == jnp.bfloat16
    assert np.abs(near.astype(np.float32) - far.astype(np.float32)).max() > 0.1


def test_the_rest_of_a_head_is_not_rotated():
    x = jnp.asarray(q[None, None, None])
    turned = apply_rope(x, rope_tables(jnp.full((1, 1), 7), H, THETA, fraction=0.25))[0, 0, 0]
    np.testing.assert_array_equal(turned[4:], q[4:])
    alone = apply_rope(x[..., :4], rope_tables(jnp.full((1, 1), 7), 4, THETA))[0, 0, 0]
    np.testing.assert_array_equal(turned[:4], alone)


def frequencies(scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """Of a head of 64 numbers, and the length of its vectors of cosine and sine."""
    tables = rope_tables(jnp.ones((1, 1)), 64, THETA, 1.0, scaling)
    cos, sin = (np.asarray(table[0, 0, 0], np.float64) for table in tables)
    return np.arctan2(sin, cos), float(np.hypot(cos, sin).mean())


PLAIN = THETA ** (-np.arange(0, 64, 2) / 64)


def test_linear_scaling_divides_every_frequency():
    found, size = frequencies(RopeScaling(kind="linear", factor=4.0))
    np.testing.assert_allclose(found, PLAIN / 4, rtol=1e-5)
    assert size == pytest.approx(1)


def test_llama3_scaling_divides_the_frequencies_of_long_waves_alone():
    """By the cases of Llama's own code."""
    factor, low, high, original = 8.0, 1.0, 4.0, 512

    def scaled(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            return frequency
        if wavelength > original / low:
            return frequency / factor
        smooth = (original / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    scaling = RopeScaling(kind="llama3", factor=factor, original_positions=original, low=low, high=high)
    found, size = frequencies(scaling)
    np.testing.assert_allclose(found, [scaled(frequency) for frequency in PLAIN], rtol=1e-5)
    assert size == pytest.approx(1)
    ratio = found / PLAIN
    assert (ratio > 0.99).any()
    assert (ratio < 0.13).any()
    assert ((ratio > 0.13) & (ratio < 0.99)).any()


@pytest.mark.parametrize("attention_factor", [None, 1.5])
def test_yarn_blends_by_the_dimensions_between_two_numbers_of_turns(attention_factor):
    """Equations 17 to 22 of 2309.00071; the borders are rounded outwards."""
    factor, original = 4.0, 512
    scaling = RopeScaling(
        kind="yarn", factor=factor, original_positions=original, low=1.0, high=32.0, attention_factor=attention_factor
    )
    found, size = frequencies(scaling)
    first, last = (64 * math.log(original / (2 * math.pi * turns)) / (2 * math.log(THETA)) for turns in (32.0, 1.0))
    share = np.clip((np.arange(32) - math.floor(first)) / (math.ceil(last) - math.floor(first)), 0, 1)
    np.testing.assert_allclose(found, share * PLAIN / factor + (1 - share) * PLAIN, rtol=1e-5)
    assert size == pytest.approx(attention_factor or 0.1 * math.log(factor) + 1)
