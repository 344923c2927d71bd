import jax
import numpy as np
import pytest

from jaxllm.common.rng import named_key

KEY = jax.random.key(0)


def same(a: jax.Array, b: jax.Array) -> bool:
    return bool(np.array_equal(jax.random.key_data(a), jax.random.key_data(b)))


def test_one_name_is_one_stream():
    assert same(named_key(KEY, "dropout"), named_key(KEY, "dropout"))


@pytest.mark.parametrize(
    ("first", "second"),
    [(("a",), ("b",)), (("a", "b"), ("b", "a")), (("a", 0), ("a", 1)), (("ab",), ("a", "b")), ((), ("a",))],
)
def test_other_names_are_other_streams(first, second):
    assert not same(named_key(KEY, *first), named_key(KEY, *second))


def test_other_seeds_are_other_streams():
    assert not same(named_key(KEY, "a"), named_key(jax.random.key(1), "a"))


def test_names_fold_in_one_after_another():
    assert same(named_key(KEY, "a", 3, "b"), named_key(named_key(named_key(KEY, "a"), 3), "b"))


def test_a_traced_step_gives_the_stream_of_the_same_integer():
    assert same(jax.jit(lambda step: named_key(KEY, "batch", step))(7), named_key(KEY, "batch", 7))


def test_streams_are_uncorrelated():
    names = [f"layers/{i}/kernel" for i in range(8)]
    draws = np.stack([jax.random.normal(named_key(KEY, name), (20_000,)) for name in names])
    correlation = np.corrcoef(draws) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / np.sqrt(draws.shape[1])
