import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten, map_with_path, nest
from jaxllm.config import GATED, TransformerConfig
from jaxllm.layers.attention import Mask
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.rope import rope_tables
from jaxllm.models.block import Context, Layer, block, normalise
from jaxllm.models.table import group, parameter_table

PLAIN = TransformerConfig(
    vocab_size=31, width=16, layers=1, heads=4, kv_heads=2, head_dim=6, ffn=24, init_std=0.3, max_positions=16
)
EVERYTHING = replace(
    PLAIN, norm="layer", attention_bias="all", mlp_bias=True, qk_norm="head", attention_softcap=2.0, mlp="geglu"
)
B, T = 2, 9
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, PLAIN.width)), jnp.float32)

ONE_SEGMENT = jnp.zeros((B, T), jnp.int32)


def layer_params(config: TransformerConfig) -> Tree:
    random = np.random.default_rng(0)
    leaves = group(parameter_table(config), "layers")
    draws = {path: x.start + (x.std or 0.1) * random.normal(size=x.shape[1:]) for path, x in leaves.items()}
    return nest({path: jnp.asarray(x, jnp.float32) for path, x in draws.items()})


@functools.partial(jax.jit, static_argnums=0)
def run(config: TransformerConfig, params: Tree, x: jax.Array = X, segments: jax.Array | None = None) -> jax.Array:
    segments = jnp.zeros((B, T), jnp.int32) if segments is None else segments
    tables = rope_tables(jnp.arange(T)[None], config.head_dim, config.rope_theta)
    context = Context(Mask(segments), rope=tables)
    return block(config, Layer(params, has_window=config.sliding_window is not None), x, context)[0]


def scaled(params: Tree, what: str, factor: float) -> Tree:
    return map_with_path(lambda path, x: x * factor if what in path else x, params)


@pytest.mark.parametrize("config", [PLAIN, EVERYTHING, replace(EVERYTHING, parallel_residual=True)])
def test_branches_that_write_nothing_leave_the_stream_bit_equal(config):
    silent = scaled(scaled(layer_params(config), "attention/output", 0.0), "mlp/down", 0.0)
    np.testing.assert_array_equal(run(config, silent), X)


def test_the_mlp_reads_the_stream_that_attention_wrote():
    params = layer_params(PLAIN)
    after_attention = run(PLAIN, scaled(params, "mlp/down", 0.0))
    mlp_alone = run(PLAIN, scaled(params, "attention/output", 0.0), after_attention)
    np.testing.assert_allclose(run(PLAIN, params), mlp_alone, atol=1e-5)


def test_parallel_branches_read_the_same_stream_and_are_added():
    config, params = replace(PLAIN, parallel_residual=True), layer_params(PLAIN)
    attention = run(config, scaled(params, "mlp/down", 0.0)) - X
    mlp = run(config, scaled(params, "attention/output", 0.0)) - X
    np.testing.assert_allclose(run(config, params), X + attention + mlp, atol=1e-5)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_each_mlp_has_its_closed_form(kind):
    config = replace(PLAIN, mlp=kind, mlp_bias=True)
    params = scaled(layer_params(config), "attention/output", 0.0)
    mlp = params["mlp"]
    rms = np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + config.norm_eps)
    normed = X / rms * params["mlp_norm"]["scale"]
    up = normed @ mlp["up"]["kernel"] + mlp["up"]["bias"]
    if kind in GATED:
        hidden = ACTIVATIONS[kind](normed @ mlp["gate"]["kernel"] + mlp["gate"]["bias"]) * up
    else:
        hidden = ACTIVATIONS[kind](up)
    expected = X + hidden @ mlp["down"]["kernel"] + mlp["down"]["bias"]
    np.testing.assert_allclose(run(config, params), expected, atol=1e-4)


def test_qk_norm_makes_scores_independent_of_the_size_of_queries_and_keys():
    for config, invariant in ((replace(PLAIN, qk_norm="head"), True), (PLAIN, False)):
        params = layer_params(config)
        larger = scaled(scaled(params, "query/kernel", 8.0), "key/kernel", 3.0)
        change = np.abs(run(config, larger) - run(config, params)).max()
        assert (change < 1e-3) == invariant


def mlp_of(params: Tree, x: jax.Array) -> jax.Array:
    """SwiGLU."""
    gate, up, down = (params["mlp"][name]["kernel"] for name in ("gate", "up", "down"))
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_stand_where_the_configuration_says(kind):
    """Attention writes nothing here."""
    forms = {
        "pre": lambda norm, mlp: X + mlp(norm("mlp_norm", X)),
        "post": lambda norm, mlp: norm("mlp_norm", (x := norm("attention_norm", X)) + mlp(x)),
        "both": lambda norm, mlp: X + norm("mlp_post_norm", mlp(norm("mlp_norm", X))),
        "branch": lambda norm, mlp: X + norm("mlp_norm", mlp(X)),
    }
    for place, form in forms.items():
        config = replace(PLAIN, norm=kind, norm_place=place)
        params = scaled(layer_params(config), "attention/output", 0.0)
        if kind == "layer":  # in place of what is 0, a norm writes its bias
            params = scaled(params, "attention_post_norm/bias", 0.0)
            params = params if place != "branch" else scaled(params, "attention_norm/bias", 0.0)

        def norm(name: str, x: jax.Array, config=config, params=params) -> jax.Array:
            return normalise(config, params[name], x)

        expected = form(norm, functools.partial(mlp_of, params))
        np.testing.assert_allclose(run(config, params), expected, atol=1e-5, err_msg=place)


def test_parallel_branches_may_share_a_norm():
    config = replace(PLAIN, parallel_residual=True)
    params = layer_params(config)
    both = {**params, "mlp_norm": params["attention_norm"]}
    shared = run(replace(config, shared_norm=True), {k: v for k, v in params.items() if k != "mlp_norm"})
    np.testing.assert_array_equal(shared, run(config, both))


def test_the_scale_of_a_zero_centred_norm_is_one_more():
    params = layer_params(PLAIN)
    less = map_with_path(lambda path, x: x - 1 if path.endswith("scale") else x, params)
    np.testing.assert_allclose(run(replace(PLAIN, zero_centred_norms=True), less), run(PLAIN, params), atol=1e-5)


def test_queries_are_normalised_head_by_head_or_all_at_once():
    def change(kind: str, heads: slice) -> float:
        config = replace(PLAIN, qk_norm=kind)
        params = layer_params(config)
        larger = {**params, "attention": dict(params["attention"])}
        kernel = params["attention"]["query"]["kernel"]
        larger["attention"]["query"] = {"kernel": kernel.at[:, heads].multiply(8.0)}
        return float(np.abs(run(config, larger) - run(config, params)).max())

    assert change("head", slice(0, 1)) < 1e-3
    assert change("projection", slice(0, 1)) > 1e-2
    assert change("projection", slice(None)) < 1e-3


@pytest.mark.parametrize("changed", [{"sliding_window": 2}, {"attention_softcap": 0.1}], ids=str)
def test_attention_limits_of_the_configuration_are_used(changed):
    params = scaled(layer_params(PLAIN), "query/kernel", 8.0)
    change = np.abs(run(replace(PLAIN, **changed), params) - run(PLAIN, params)).max(axis=(0, 2))
    assert change[0] == 0
    assert change[2:].min() > 1e-3


def test_a_token_sees_its_own_segment_only():
    params, segments = layer_params(PLAIN), jnp.asarray(np.arange(T) >= 4, jnp.int32)[None].repeat(B, 0)
    changed = run(PLAIN, params, X.at[:, 1].add(1.0), segments)
    same = np.all(changed == run(PLAIN, params, X, segments), axis=(0, 2))
    assert same.tolist() == [True, False, False, False] + 5 * [True]


@pytest.mark.parametrize("config", [EVERYTHING, replace(EVERYTHING, mlp="gelu", norm="rms")])
def test_every_parameter_has_a_gradient(config):
    gradients = jax.grad(lambda p: jnp.sum(jnp.sin(run(config, p))))(layer_params(config))
    assert {path for path, g in flatten(gradients).items() if not np.abs(g).max() > 1e-6} == set()
