"""Experts against a dense loop over them, and cut over devices against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten, map_with_path, nest
from jaxllm.config import MeshConfig
from jaxllm.layers.experts import balance_loss, expert_mlp
from jaxllm.models.table import Param
from jaxllm.sharding.gather import Types, gather_at_use
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import BATCH, spec

B, T, D, M, E = 8, 6, 16, 24, 4
AXES = {"router": "DJ", "gate": "EDM", "up": "EDM", "down": "EMD"}
random = np.random.default_rng(0)
SHAPES = {"D": D, "J": E, "E": E, "M": M}
PARAMS = nest(
    {
        f"{name}/kernel": jnp.asarray(random.normal(size=[SHAPES[a] for a in axes]), jnp.float32) / 4
        for name, axes in AXES.items()
    }
)
X = jnp.asarray(random.normal(size=(B, T, D)), jnp.float32)
SEGMENTS = jnp.asarray(np.where(np.arange(T) < 4, 1, 0)[None].repeat(B, 0), jnp.int32).at[0].set(1)


def mixed(x: jax.Array, params: Tree, chosen: int = 2, segments: jax.Array = SEGMENTS) -> tuple[jax.Array, jax.Array]:
    return expert_mlp(x, params, jax.nn.silu, chosen, segments)


def made(x: jax.Array, params: Tree, e: int) -> jax.Array:
    """By one expert."""
    gate, up, down = (params[name]["kernel"][e] for name in ("gate", "up", "down"))
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def dense(x: jax.Array, params: Tree, chosen: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every expert on every token, weighed with 0 where it is not chosen; the weights, and all probabilities."""
    probability = jax.nn.softmax(x @ params["router"]["kernel"])
    smallest = jnp.sort(probability, axis=-1)[..., -chosen, None]
    weights = jnp.where(probability >= smallest, probability, 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    out = jnp.zeros_like(x)
    for e in range(E):
        out += weights[..., e, None] * made(x, params, e)
    return out, weights, probability


@pytest.mark.parametrize("chosen", [1, 2, E])
def test_each_token_is_what_its_experts_make_of_it(chosen):
    out, shares = jax.jit(mixed, static_argnums=2)(X, PARAMS, chosen)
    expected, weights, probability = dense(X, PARAMS, chosen)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    real = np.asarray(SEGMENTS != 0)
    assert (np.count_nonzero(weights, axis=-1) == chosen).all()
    np.testing.assert_allclose(shares[0], np.mean(weights[real] > 0, axis=0), atol=1e-6)
    np.testing.assert_allclose(shares[1], np.mean(probability[real], axis=0), atol=1e-6)
    assert shares[0].sum() == pytest.approx(chosen)


def test_experts_that_nobody_chooses_do_no_harm():
    """Ties are given to the first."""
    out, shares = jax.jit(mixed)(X, {**PARAMS, "router": {"kernel": jnp.zeros((D, E))}})
    assert sorted(np.asarray(shares[0]).tolist()) == [0, 0, 1, 1]
    np.testing.assert_allclose(out, (made(X, PARAMS, 0) + made(X, PARAMS, 1)) / 2, atol=1e-5)


def test_balance_loss_has_its_closed_forms():
    even = jnp.asarray([[[2 / E] * E, [1 / E] * E]] * 3)
    assert balance_loss(even) == pytest.approx(2)
    one = jnp.asarray([[[1.0] + [0.0] * (E - 1)] * 2])
    assert balance_loss(one) == pytest.approx(E)
    # Layers are averaged before the product: each may prefer another expert.
    turns = jnp.asarray([[np.eye(E)[layer]] * 2 for layer in range(E)])
    assert balance_loss(turns) == pytest.approx(1)


def loss(x: jax.Array, params: Tree) -> jax.Array:
    out, shares = mixed(x, params)
    return jnp.sum(jnp.sin(out)) + balance_loss(shares[None])


value_and_gradients = jax.value_and_grad(loss, argnums=(0, 1))


def test_gradients_are_those_of_the_dense_loop():
    def plain(x: jax.Array, params: Tree) -> jax.Array:
        out, weights, probability = dense(x, params, 2)
        real = (SEGMENTS != 0)[..., None]
        f, p = ((real * share).sum(axis=(0, 1)) / real.sum() for share in (weights > 0, probability))
        return jnp.sum(jnp.sin(out)) + E * jnp.sum(f * p)

    found, expected = jax.jit(value_and_gradients)(X, PARAMS), jax.jit(jax.value_and_grad(plain, (0, 1)))(X, PARAMS)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for got, want in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


TABLE = {f"{name}/kernel": Param(tuple(SHAPES[a] for a in axes), tuple(axes), 1.0) for name, axes in AXES.items()}


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 4, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 4}], ids=str)
def test_experts_and_tokens_cut_over_devices_change_nothing(sizes):
    expected, expected_gradients = jax.jit(value_and_gradients)(X, PARAMS)
    mesh, at_use = make_mesh(MeshConfig(**sizes)), gather_at_use(Types())

    def on_mesh(x: jax.Array, params: Tree, segments: jax.Array) -> jax.Array:
        out, shares = mixed(x, at_use(params), 2, segments)
        return jnp.sum(jnp.sin(out)) + balance_loss(shares[None])

    with jax.set_mesh(mesh):
        cut = map_with_path(lambda path, x: jax.device_put(x, spec(mesh.shape, TABLE[path])), PARAMS)
        x, segments = (jax.device_put(array, BATCH) for array in (X, SEGMENTS))
        found, gradients = jax.jit(jax.value_and_grad(on_mesh, argnums=(0, 1)))(x, cut, segments)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], expected_gradients[0], atol=1e-5)
    for path, gradient in flatten(gradients[1]).items():
        np.testing.assert_allclose(gradient, flatten(expected_gradients[1])[path], atol=2e-5, err_msg=path)
