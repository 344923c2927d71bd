from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import TransformerConfig
from jaxllm.layers.norm import layer_norm
from jaxllm.models.heads import head_input, head_kernel, head_logits, label_logits, mean_pooled, pooled
from tests.models.small import parameters

BERT = TransformerConfig(
    architecture="encoder",
    vocab_size=31,
    width=16,
    layers=1,
    norm="layer",
    norm_place="post",
    mlp="gelu_erf",
    head_transform=True,
    head_bias=True,
    pooler=True,
    labels=3,
    init_std=0.3,
)
PARAMS = parameters(BERT)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)


def test_a_transformed_head_has_its_closed_form():
    head = PARAMS["head"]
    x = jax.nn.gelu(X @ head["transform"]["kernel"] + head["transform"]["bias"], approximate=False)
    x = layer_norm(x, head["norm"]["scale"], head["norm"]["bias"], BERT.norm_eps)
    np.testing.assert_allclose(head_input(PARAMS, X, BERT), x, atol=1e-5)
    logits = x @ PARAMS["embedding"]["tokens"].T + head["bias"]
    np.testing.assert_allclose(head_logits(PARAMS, X, BERT), logits, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_scaled_given_their_bias_and_capped_in_this_order(tied):
    config = replace(BERT, head_transform=False, tied_embeddings=tied, logit_scale=0.25, logit_softcap=2.0)
    params = parameters(config)
    kernel = params["embedding"]["tokens"].T if tied else params["head"]["kernel"]
    own, axes = head_kernel(params, config)
    np.testing.assert_array_equal(own.T if axes == "VD" else own, kernel)
    expected = 2 * np.tanh((0.25 * X @ kernel + params["head"]["bias"]) / 2)
    np.testing.assert_allclose(head_logits(params, X, config), expected, atol=1e-5)


def test_texts_are_pooled_by_their_first_token_or_without_a_pooler_read_there():
    first = np.tanh(X[:, 0] @ PARAMS["pooler"]["kernel"] + PARAMS["pooler"]["bias"])
    np.testing.assert_allclose(pooled(PARAMS, X[:, 0]), first, atol=1e-5)
    kernel, bias = PARAMS["classifier"]["kernel"], PARAMS["classifier"]["bias"]
    np.testing.assert_allclose(label_logits(PARAMS, X, BERT), first @ kernel + bias, atol=1e-5)
    unpooled = label_logits(PARAMS, X, replace(BERT, pooler=False))
    np.testing.assert_allclose(unpooled, X[:, 0] @ kernel + bias, atol=1e-5)


def test_the_mean_of_each_text_of_a_row_leaves_out_padding():
    segments = jnp.asarray([[1, 1, 2, 2, 0], [1, 0, 0, 0, 0]])
    means = mean_pooled(X, segments, 3)
    np.testing.assert_allclose(means[0, 0], X[0, :2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(means[0, 1], X[0, 2:4].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(means[1, 0], X[1, 0], atol=1e-6)
    np.testing.assert_array_equal(means[:, 2], 0)


def test_what_is_compared_is_float32_for_bfloat16_states():
    x = X.astype(jnp.bfloat16)
    made = head_logits(PARAMS, x, BERT), label_logits(PARAMS, x, BERT), mean_pooled(x, jnp.ones((2, 5), int), 1)
    assert [array.dtype for array in made] == [jnp.float32] * 3
    assert pooled(PARAMS, x[:, 0]).dtype == jnp.bfloat16
