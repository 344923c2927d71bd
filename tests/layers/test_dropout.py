import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.dropout import dropout
from jaxllm.layers.ring import zigzag
from jaxllm.sharding.mesh import make_mesh

KEY = jax.random.key(0)
X = jnp.ones((10, 100, 102))
"""Its rows are no whole number of hashes."""

ROWS = P(("data", "fsdp"), "sequence", None)
half = jax.jit(lambda x, key: dropout(x, 0.5, key))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(rate):
    out = np.asarray(dropout(X, rate, KEY))
    spread = np.sqrt(rate * (1 - rate) / X.size)
    assert abs(np.mean(out == 0) - rate) < 5 * spread
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)


def test_one_key_drops_the_same_elements_and_another_key_others():
    np.testing.assert_array_equal(half(X, KEY), half(X, KEY))
    assert np.mean(half(X, KEY) == half(X, jax.random.key(1))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_tokens_and_columns_are_dropped_independently(axis):
    out = np.asarray(half(X, KEY))
    for shift in (1, 26, 51):
        assert np.mean(out == np.roll(out, shift, axis)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("rate", "key"), [(0.0, KEY), (0.5, None)])
def test_without_a_rate_or_a_key_nothing_is_computed(rate, key):
    assert dropout(X, rate, key) is X


def test_the_gradient_passes_through_what_was_kept():
    gradient = jax.grad(lambda x: dropout(x, 0.5, KEY).sum())(X)
    np.testing.assert_array_equal(gradient, half(X, KEY))


def test_the_type_is_kept():
    assert dropout(X.astype(jnp.bfloat16), 0.1, KEY).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 4},
        {"data": 1, "tensor": 8},
        {"data": 2, "sequence": 2, "tensor": 2},
        {"data": 1, "sequence": 8},
    ],
    ids=str,
)
def test_any_mesh_drops_the_elements_that_one_device_drops(sizes):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32, 10)), jnp.float32)
    mesh = make_mesh(MeshConfig(**sizes))
    order = zigzag(32, mesh.shape["sequence"])
    with jax.set_mesh(mesh):
        out = half(jax.device_put(x[:, order], ROWS), KEY)
    assert out.sharding.spec == ROWS
    np.testing.assert_array_equal(out, half(x, KEY)[:, order])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "sequence": 4}], ids=str)
def test_a_device_draws_for_its_own_elements_only(sizes):
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
        x = jnp.zeros((8, 32, 64), out_sharding=ROWS)
        program = half.lower(x, KEY).compile()
    shapes = re.findall(r"\w\[([\d,]+)\]", program.as_text())
    assert max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) == x.size / 8
