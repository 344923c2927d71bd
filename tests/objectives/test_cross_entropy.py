"""The chunked loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.objectives.cross_entropy import cross_entropy
from jaxllm.sharding.mesh import make_mesh

B, T, D, V = 8, 23, 16, 40


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return (
        jax.random.normal(keys[0], (B, T, D)).astype(dtype),
        jax.random.normal(keys[1], (D, V)),
        jax.random.randint(keys[2], (B, T), 0, V),
        jax.random.bernoulli(keys[3], 0.7, (B, T)).astype(jnp.float32),
    )


def plain(hidden, kernel, targets, weights, bias=0.0, z_loss=0.0, softcap=None):
    logits = jnp.dot(hidden.astype(jnp.float32), kernel) + bias
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (nll + z_loss * log_z**2))


@pytest.mark.parametrize("axes", ["DV", "VD"])
@pytest.mark.parametrize(
    ("chunk", "z_loss", "softcap"),
    [(1024, 0.0, None), (16, 0.0, None), (40, 1e-2, None), (40, 1e-2, 3.0), (1, 0.0, None)],
)
def test_loss_and_gradients_are_those_of_the_plain_loss_for_any_chunk(chunk, z_loss, softcap, axes):
    args = inputs()

    def ours(hidden, kernel, *rest):
        kernel = kernel.T if axes == "VD" else kernel
        return 3.0 * cross_entropy(hidden, kernel, *rest, axes=axes, chunk=chunk, z_loss=z_loss, softcap=softcap)[0]

    total, grads = jax.jit(jax.value_and_grad(ours, (0, 1)))(*args)
    expected, expected_grads = jax.value_and_grad(lambda *a: 3.0 * plain(*a, z_loss=z_loss, softcap=softcap), (0, 1))(
        *args
    )
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


BIAS = jax.random.normal(jax.random.key(1), (V,))


def biased(bias, *args, **options):
    return 3.0 * cross_entropy(*args, bias_V=bias, chunk=40, **options)[0]


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_bias_is_added_before_the_cap_and_has_its_gradient(softcap):
    args = inputs()
    found = jax.jit(jax.value_and_grad(lambda *a: biased(*a, z_loss=1e-2, softcap=softcap), (0, 1, 2)))(BIAS, *args)
    expected = jax.value_and_grad(lambda bias, *a: 3.0 * plain(*a, bias, 1e-2, softcap), (0, 1, 2))(BIAS, *args)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for got, want in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_the_heads_gradient_is_not_rounded_to_the_type_of_the_products():
    args = inputs(jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda *a: cross_entropy(*a, chunk=40)[0], 1))(*args)
    assert gradient.dtype == jnp.float32
    assert np.mean(gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)) > 0.9


def test_evaluation_gives_the_value_of_differentiation():
    args = inputs()
    value = jax.jit(lambda *a: cross_entropy(*a, chunk=40)[0])(*args)
    differentiated, _ = jax.jit(jax.value_and_grad(lambda *a: cross_entropy(*a, chunk=40)[0]))(*args)
    np.testing.assert_allclose(value, differentiated, rtol=1e-7)


def test_dropped_tokens_have_neither_loss_nor_gradient():
    hidden, kernel, targets, weights = inputs()
    loss = jax.jit(lambda h, t: cross_entropy(h, kernel, t, weights, chunk=64)[0])
    other_targets = jnp.where(weights == 0, (targets + 1) % V, targets)
    assert loss(hidden, targets) == loss(hidden, other_targets)
    gradient = jax.jit(jax.grad(loss))(hidden, targets)
    assert np.all(np.asarray(gradient)[np.asarray(weights) == 0] == 0)
    assert cross_entropy(hidden, kernel, targets, weights)[1] == weights.sum()


def test_penalty_is_left_out_of_the_reported_likelihood():
    args = inputs()
    total, _, metrics = jax.jit(lambda *a: cross_entropy(*a, z_loss=1e-2))(*args)
    np.testing.assert_allclose(metrics["nll"], plain(*args), rtol=1e-6)
    assert total > metrics["nll"]


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    hidden, kernel, targets, weights = inputs()
    total, weight, _ = jax.jit(cross_entropy)(jnp.zeros_like(hidden), kernel, targets, weights)
    np.testing.assert_allclose(total / weight, np.log(V), rtol=1e-5)


def test_no_array_holds_the_logits_of_the_batch():
    args = inputs()
    step = jax.jit(jax.grad(lambda *a: cross_entropy(*a, chunk=B)[0], (0, 1)))
    text = step.lower(*args).as_text()
    assert f"{B}x{T}x{V}x" not in text
    assert f"{B}x1x{V}x" in text


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "tensor": 4}])
def test_cut_batch_and_vocabulary_change_nothing(sizes):
    args = inputs()
    args = BIAS, *args
    loss = jax.value_and_grad(biased, (0, 1, 2))
    expected, expected_grads = jax.jit(loss)(*args)
    mesh = make_mesh(MeshConfig(**sizes))
    batch = P(("data", "fsdp"))
    specs = P("tensor"), batch, P(None, "tensor"), batch, batch
    with jax.set_mesh(mesh):
        cut = [jax.device_put(x, s) for x, s in zip(args, specs, strict=True)]
        total, grads = jax.jit(loss)(*cut)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
