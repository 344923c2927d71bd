import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.layers.relative import buckets, relative_bias, row_bias

T5 = {
    (32, 128, False): (
        [*range(8), 8, 12, 16, 23, 32, 46, 64, 91],
        [0, *range(1, 8), 8, 12, 16, 23, 32, 46, 64, 91],
    ),
    (32, 128, True): ([*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113], [0]),
    (8, 20, False): ([0, 1, 2, 7], [0, 1, 2, 7]),
    (8, 20, True): ([0, 1, 2, 3, 4, 6, 9, 14], [0]),
}
"""The nearest distance of each bucket of keys behind the query, and of keys ahead: those of transformers."""

random = np.random.default_rng(0)


def expected(ahead: np.ndarray, count: int, farthest: int, is_causal: bool) -> np.ndarray:
    behind_from, ahead_from = T5[count, farthest, is_causal]
    behind = np.searchsorted(behind_from, -ahead, side="right") - 1
    in_front = np.searchsorted(ahead_from, ahead, side="right") - 1
    shift = 0 if is_causal else count // 2
    return np.where(ahead > 0, in_front + shift, behind)


@pytest.mark.parametrize(("count", "farthest", "is_causal"), T5)
def test_the_bucket_of_every_distance_is_that_of_t5(count, farthest, is_causal):
    ahead = np.arange(-1000, 1001)
    table = jnp.arange(count, dtype=jnp.float32)[:, None]
    found = relative_bias(table, jnp.asarray(ahead), is_causal, farthest)[:, 0]
    np.testing.assert_array_equal(found, expected(ahead, count, farthest, is_causal))
    np.testing.assert_array_equal(buckets(is_causal, count, farthest), found[1000 - farthest : 1001 + farthest])


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_rows_biases_are_those_of_all_its_distances(is_causal):
    T, table = 30, jnp.asarray(random.normal(size=(8, 3)), jnp.bfloat16)
    row = row_bias(table, T, is_causal, 20)
    assert row.shape == (3, 2 * T - 1)
    assert row.dtype == jnp.float32
    for t, s in ((0, 0), (29, 0), (0, 29), (12, 17)):
        bias = relative_bias(table, jnp.asarray(s - t), is_causal, 20)
        np.testing.assert_array_equal(row[:, T - 1 + s - t], bias)
