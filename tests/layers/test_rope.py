import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
