import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.linear import merge, project, scaled
from jaxllm.sharding.mesh import make_mesh

random = np.random.default_rng(0)
X = random.normal(size=(4, 3, 16)).astype(np.float32)
OUT = random.normal(size=(16, 4, 6)).astype(np.float32)
"""`[D, N, H]`, the kernel of a query projection."""
BACK = random.normal(size=(4, 6, 16)).astype(np.float32)
"""`[N, H, D]`, the kernel of an output projection."""
BIAS = random.normal(size=(4, 6)).astype(np.float32)


def test_project_contracts_the_last_axis_and_keeps_the_kernels_output_axes():
    expected = np.einsum("BTD,DNH->BTNH", X, OUT)
    np.testing.assert_allclose(project(X, OUT), expected, atol=1e-5)
    np.testing.assert_allclose(project(X, OUT, BIAS), expected + BIAS, atol=1e-5)


def test_merge_contracts_all_axes_but_the_kernels_last():
    x = np.einsum("BTD,DNH->BTNH", X, OUT)
    expected = np.einsum("BTNH,NHD->BTD", x, BACK)
    np.testing.assert_allclose(merge(x, BACK), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(merge(x, BACK, X[0, 0]), expected + X[0, 0], rtol=1e-5, atol=1e-4)


def test_a_constant_is_not_rounded_before_the_product_is():
    x, by = jnp.asarray(X, jnp.bfloat16), 512**-0.5
    wanted = (np.asarray(x, np.float64) * by).astype(jnp.bfloat16)
    np.testing.assert_array_equal(scaled(x, by), wanted)
    assert np.any(x * jnp.bfloat16(by) != wanted)


def test_float32_weights_are_used_in_the_type_of_the_activations():
    x = jnp.asarray(X, jnp.bfloat16)
    assert project(x, OUT, BIAS).dtype == jnp.bfloat16
    assert merge(project(x, OUT), BACK, X[0, 0]).dtype == jnp.bfloat16


@functools.partial(jax.jit, static_argnums=(0, 1))
def output_and_gradients(project, merge, x, out, back):
    """The kernels widen and narrow: the backward pass treats the two differently."""

    def loss(x, out, back):
        y = merge(jnp.sin(project(x, out)), back)
        return jnp.sum(jnp.sin(y).astype(jnp.float32)), y

    (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, out, back)
    return y, *gradients


REFERENCE = (
    lambda x, out: jnp.einsum("BTD,DNH->BTNH", x, out),
    lambda x, back: jnp.einsum("BTNH,NHD->BTD", x, back),
)
EXPECTED = output_and_gradients(*REFERENCE, X, OUT, BACK)


def test_gradients_are_those_of_the_plain_products():
    for actual, expected in zip(output_and_gradients(project, merge, X, OUT, BACK), EXPECTED, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_weight_gradients_of_bfloat16_activations_keep_the_parameters_type():
    x = jnp.asarray(X, jnp.bfloat16)
    y, dx, *d_kernels = output_and_gradients(project, merge, x, OUT, BACK)
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    for actual, expected in zip(d_kernels, EXPECTED[2:], strict=True):
        assert actual.dtype == jnp.float32
        assert np.linalg.norm(actual - expected) < 0.05 * np.linalg.norm(expected)


def test_bias_gradients_of_bfloat16_activations_are_summed_in_float32():
    x, zero = jnp.zeros((4, 1024, 8), jnp.bfloat16), jnp.zeros(6)
    kernel = jnp.zeros((8, 6))
    weight = jax.random.normal(jax.random.key(1), (4, 1024, 6)).astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda bias: jnp.sum(project(x, kernel, bias).astype(jnp.float32) * weight)))(zero)
    np.testing.assert_allclose(gradient, np.sum(np.asarray(weight, np.float64), (0, 1)), rtol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=1, fsdp=2, tensor=2)], ids=["data", "tensor"])
def test_cut_kernels_and_batches_give_the_same_values_and_gradients(mesh):
    devices = make_mesh(mesh, jax.devices()[:4])
    specs = P(("data", "fsdp")), P(None, "tensor"), P("tensor")
    with jax.set_mesh(devices):
        args = [jax.device_put(a, NamedSharding(devices, spec)) for a, spec in zip((X, OUT, BACK), specs, strict=True)]
        actual = output_and_gradients(project, merge, *args)
    for x, expected, like in zip(actual, EXPECTED, [args[0], *args], strict=True):
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
