import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten, map_with_path
from jaxllm.config import TransformerConfig
from jaxllm.layers.attention import Mask
from jaxllm.layers.rope import rope_tables
from jaxllm.models.block import Context, Layer, block, normalise
from jaxllm.models.cache import Cache, empty_cache
from jaxllm.models.heads import head_logits
from jaxllm.models.presets import SMOLLM2_135M
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer, cast_for_use, decode, initial, per_layer
from tests.models.small import parameters

ROPE = TransformerConfig(
    vocab_size=31,
    width=16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn=24,
    max_positions=16,
    tied_embeddings=False,
    init_std=0.3,
)
LEARNED = replace(
    ROPE,
    norm="layer",
    mlp="gelu",
    positions="learned",
    attention_bias="all",
    mlp_bias=True,
    qk_norm="head",
    attention_softcap=2.0,
    tied_embeddings=True,
    embedding_scale=True,
)
B, T = 2, 12
random = np.random.default_rng(0)
TOKENS = jnp.asarray(random.integers(0, ROPE.vocab_size, (B, T)), jnp.int32)
KEY = jax.random.key(1)
QUICK_KEY = jax.random.key(1, impl="unsafe_rbg")
"""Its draws compile in a fraction of the time."""

both = pytest.mark.parametrize("config", [ROPE, LEARNED], ids=["rope", "learned"])


@functools.partial(jax.jit, static_argnums=0)
def hidden(model: Transformer, params: Tree, tokens: jax.Array = TOKENS, *inputs: jax.Array, **named: jax.Array):
    return model.apply({"params": params}, tokens, *inputs, **named)[0]


@both
def test_a_later_token_leaves_earlier_hidden_states_bit_equal(config):
    params = parameters(config)
    before = hidden(Transformer(config), params)
    after = hidden(Transformer(config), params, TOKENS.at[:, 7].add(1) % config.vocab_size)
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert np.abs(after[:, 7:] - before[:, 7:]).max(axis=-1).min() > 1e-4


@both
def test_packed_documents_equal_documents_alone(config):
    params, half = parameters(config), T // 2
    positions = jnp.tile(jnp.arange(half), (B, 2))
    segments = jnp.repeat(jnp.asarray([[0, 1], [3, 2]]), half, axis=1)
    packed = hidden(Transformer(config), params, TOKENS, positions, segments)
    alone = hidden(Transformer(config), params, TOKENS.reshape(2 * B, half))
    np.testing.assert_allclose(packed, alone.reshape(packed.shape), atol=1e-5)


def test_rotary_positions_may_start_anywhere():
    positions = jnp.broadcast_to(jnp.arange(T) + 100, (B, T))
    shifted = hidden(Transformer(ROPE), parameters(ROPE), TOKENS, positions)
    np.testing.assert_allclose(shifted, hidden(Transformer(ROPE), parameters(ROPE)), atol=1e-3)


def test_without_positions_order_is_seen_through_the_causal_mask_alone():
    """The last of several equal-context tokens cannot tell their order: attention is a sum over a set."""
    config = replace(ROPE, positions="none", layers=1)
    params = parameters(config)
    swapped = hidden(Transformer(config), params, TOKENS[:, [1, 0, *range(2, T)]])
    np.testing.assert_allclose(swapped[:, 2:], hidden(Transformer(config), params)[:, 2:], atol=1e-5)


def test_a_window_reaches_one_window_further_with_every_layer():
    config = replace(ROPE, sliding_window=2)
    params = parameters(ROPE)
    changed = hidden(Transformer(config), params, TOKENS.at[:, 0].add(1) % config.vocab_size)
    same = np.all(changed == hidden(Transformer(config), params), axis=(0, 2))
    assert same.tolist() == 4 * [False] + (T - 4) * [True]


def test_grouped_queries_equal_every_head_with_its_groups_keys_and_values():
    params = parameters(ROPE)
    repeated = map_with_path(
        lambda path, x: jnp.repeat(x, ROPE.heads // ROPE.kv_heads, axis=2) if re.search("key|value", path) else x,
        params,
    )
    whole = hidden(Transformer(replace(ROPE, kv_heads=ROPE.heads)), repeated)
    np.testing.assert_allclose(whole, hidden(Transformer(ROPE), params), atol=1e-5)


def test_the_scan_over_layers_equals_the_layers_one_by_one():
    params = parameters(ROPE)
    x = params["embedding"]["tokens"][TOKENS]
    tables = rope_tables(jnp.arange(T)[None], ROPE.head_dim, ROPE.rope_theta)
    context = Context(Mask(jnp.ones_like(TOKENS)), rope=tables)
    for i in range(ROPE.layers):
        params_i = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        x = jax.jit(lambda params, x: block(ROPE, Layer(params), x, context)[0])(params_i, x)
    expected = normalise(ROPE, params["final_norm"], x)
    np.testing.assert_allclose(hidden(Transformer(ROPE), params), expected, atol=1e-5)


@functools.cache
def training_pass(model: Transformer) -> jax.stages.Compiled:
    """`(params, dropout key) -> (loss, gradients)`."""

    def loss(params: Tree, key: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(model.apply({"params": params}, TOKENS, dropout_key=key)[0]))

    return jax.jit(jax.value_and_grad(loss)).lower(parameters(ROPE), QUICK_KEY).compile()


DROPPING = replace(ROPE, dropout=0.2)
"""Recomputed masks must be the ones of the forward pass."""


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_value_and_no_gradient(remat):
    value, gradients = training_pass(Transformer(DROPPING))(parameters(ROPE), QUICK_KEY)
    again, recomputed = training_pass(Transformer(DROPPING, remat=remat))(parameters(ROPE), QUICK_KEY)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for path, gradient in flatten(gradients).items():
        np.testing.assert_allclose(flatten(recomputed)[path], gradient, rtol=1e-5, atol=1e-5, err_msg=path)


def test_each_policy_saves_less_than_the_one_before():
    programs = [training_pass(Transformer(DROPPING, remat=remat)) for remat in ("none", "dots", "full")]
    none, dots, full = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert none > dots > full


def test_dropout_acts_only_with_a_key_and_follows_it():
    model, params = Transformer(replace(ROPE, dropout=0.3)), parameters(ROPE)
    np.testing.assert_array_equal(hidden(model, params), hidden(Transformer(ROPE), params))
    once = hidden(model, params, dropout_key=KEY)
    np.testing.assert_array_equal(once, hidden(model, params, dropout_key=KEY))
    assert np.abs(once - hidden(model, params, dropout_key=jax.random.key(2))).max() > 0.1
    assert np.abs(once - hidden(model, params)).max() > 0.1


def test_embedding_and_each_branch_of_each_layer_are_dropped_independently():
    """Let each of the 2 L + 1 write a one: an element of the stream counts those that were kept."""
    rate, writers = 0.4, 2 * ROPE.layers + 1
    config = replace(ROPE, width=512, dropout=rate, attention_bias="all", mlp_bias=True)
    ones = re.compile("embedding|(output|down)/bias|final_norm")
    params = map_with_path(lambda path, x: x * 0.0 + bool(ones.search(path)), parameters(config))
    x = np.asarray(hidden(Transformer(config), params, dropout_key=KEY))
    kept = writers * x / x.max(axis=-1, keepdims=True)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)
    n = kept.size
    variance = writers * rate * (1 - rate)
    assert abs(kept.mean() - writers * (1 - rate)) < 5 * np.sqrt(variance / n)
    assert abs(kept.var() - variance) < 5 * variance * np.sqrt(2 / n)


def test_dropout_grows_evenly_from_the_first_layer_to_the_last():
    """Let only the two branches of one layer write ones."""
    config = replace(ROPE, layers=4, width=512, first_dropout=0.0, dropout=0.6, attention_bias="all", mlp_bias=True)
    model, ones = Transformer(config), re.compile("layers/.*(output|down)/bias")
    run = jax.jit(lambda params: hidden(model, params, dropout_key=KEY))
    for number, rate in enumerate((0.0, 0.2, 0.4, 0.6)):
        writes = np.arange(4)[:, None] == number
        params = map_with_path(
            lambda path, x, writes=writes: x * 0.0 + (writes if ones.search(path) else path.startswith("final_norm")),
            parameters(config),
        )
        x = np.asarray(run(params))
        kept = x / x.max(axis=-1, keepdims=True)
        assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / (2 * kept.size)) + 1e-6


WIDE = replace(LEARNED, width=64, layers=4, vocab_size=300, mlp="swiglu", tied_embeddings=False)
"""Has every kind of leaf."""


@functools.cache
def start() -> dict[str, np.ndarray]:
    tree = jax.jit(lambda: initial(KEY, parameter_table(WIDE)))()
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


def test_every_leaf_starts_with_its_stated_spread():
    spread = {
        r"(output|down)/kernel": WIDE.init_std / np.sqrt(2 * WIDE.layers),
        r"kernel|embedding": WIDE.init_std,
        r"scale|bias": 0.0,
    }
    for path, leaf in start().items():
        std = next(std for pattern, std in spread.items() if re.search(pattern, path))
        centre = float(path.endswith("scale"))
        assert leaf.dtype == np.float32
        assert abs(leaf.mean() - centre) <= 5 * std / np.sqrt(leaf.size), path
        assert abs(leaf.std() - std) <= 5 * std / np.sqrt(2 * leaf.size), path


def test_leaves_and_layers_start_from_different_numbers():
    kernels = [x for path, x in start().items() if path.endswith("kernel")]
    n = min(x[0].size for x in kernels)
    draws = np.stack([layer.ravel()[:n] for x in kernels for layer in x])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_a_leaf_starts_from_its_path_alone():
    """A field that adds a leaf must not move the others."""
    path = "layers/mlp/up/kernel"
    alone = initial(KEY, {path: parameter_table(WIDE)[path]})
    np.testing.assert_allclose(flatten(alone)[path], start()[path], rtol=1e-5)


def test_declared_parameters_are_those_of_the_table_and_count_as_published():
    shapes = jax.eval_shape(Transformer(SMOLLM2_135M).init, jax.random.key(0), TOKENS)["params"]
    table = parameter_table(SMOLLM2_135M)
    declared = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    assert declared == {path: leaf.shape for path, leaf in table.items()}
    assert sum(leaf.size for leaf in table.values()) == 134_515_008


def test_scaled_embeddings_are_multiplied_by_the_root_of_the_width():
    params = parameters(ROPE)
    larger = params | {"embedding": {"tokens": params["embedding"]["tokens"] * ROPE.width**0.5}}
    scaled = hidden(Transformer(replace(ROPE, embedding_scale=True)), params)
    np.testing.assert_allclose(scaled, hidden(Transformer(ROPE), larger), atol=1e-5)


@both
def test_the_head_is_its_own_or_the_embedding(config):
    params, x = parameters(config), hidden(Transformer(config), parameters(config))
    kernel = params["embedding"]["tokens"].T if config.tied_embeddings else params["head"]["kernel"]
    np.testing.assert_allclose(head_logits(params, x, config), x @ kernel, atol=1e-5)
    capped = head_logits(params, x, replace(config, logit_softcap=2.0))
    np.testing.assert_allclose(capped, 2 * np.tanh(x @ kernel / 2), atol=1e-5)


@both
def test_bfloat16_activations_stay_near_float32_and_logits_are_float32(config):
    params = parameters(config)
    x = hidden(Transformer(config, dtype=jnp.bfloat16), params)
    exact = hidden(Transformer(config), params)
    assert x.dtype == jnp.bfloat16
    assert head_logits(params, x, config).dtype == jnp.float32
    assert np.linalg.norm(x.astype(jnp.float32) - exact) < 0.05 * np.linalg.norm(exact)


def test_weights_for_generation_are_cast_but_for_norms_biases_and_what_scales_outputs():
    params = parameters(LEARNED)
    attention = {**params["layers"]["attention"], "gate": jnp.ones((2, 4))}
    attention["query"] = {**attention["query"], "lora_gain": jnp.ones((2, 4, 8)), "lora_a": jnp.ones((2, 32, 2))}
    params = {**params, "layers": {**params["layers"], "attention": attention}}
    kept = ("scale", "bias", "attention/gate", "lora_gain")
    for path, leaf in flatten(cast_for_use(params, jnp.bfloat16)).items():
        assert leaf.dtype == (jnp.float32 if path.endswith(kept) else jnp.bfloat16), path


def test_every_group_passes_through_at_use_just_before_it_is_used():
    seen = []

    def at_use(params: Tree) -> Tree:
        seen.append({path: leaf.ndim for path, leaf in flatten(params).items()})
        return jax.tree.map(lambda x: 2 * x, params)

    params = parameters(ROPE)
    doubled = hidden(Transformer(ROPE), jax.tree.map(lambda x: 2 * x, params))
    np.testing.assert_array_equal(hidden(Transformer(ROPE, at_use=at_use), params), doubled)
    embedding, layer, final_norm = seen
    assert (embedding, final_norm) == ({"tokens": 2}, {"scale": 1})
    assert layer["mlp/up/kernel"] == 2, "a layer's slice has no layer axis"


@pytest.mark.parametrize("config", [replace(ROPE, sliding_window=5), LEARNED], ids=["rope", "learned"])
def test_cached_decoding_of_rows_of_different_lengths_equals_the_full_pass(config):
    """Padded prompts go in at once, by the scan over layers; their padding is dropped by lowering the length; then
    token by token, by the loop over layers that generation uses."""
    params, lengths, padded = parameters(config), jnp.asarray([7, 3]), 8
    step = jax.jit(functools.partial(decode, Transformer(config)))
    full = hidden(Transformer(config), params)
    prompt, cache, _ = step(params, TOKENS[:, :padded], cache=empty_cache(config, B, T, jnp.float32))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], full[row, :length], atol=1e-4)
    params = params | {"layers": per_layer(params["layers"])}
    cache = Cache(per_layer(cache.keys), per_layer(cache.values), lengths)
    for _ in range(T - int(lengths.max())):
        here = cache.length
        x, cache, _ = step(params, jnp.take_along_axis(TOKENS, here[:, None], axis=1), cache=cache)
        np.testing.assert_array_equal(cache.length, here + 1)
        np.testing.assert_allclose(x[:, 0], full[np.arange(B), here], atol=1e-4)
