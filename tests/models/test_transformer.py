"""Encoders, pairs of stacks, and stacks whose layers differ; decoders alone are tested in test_decoder.py."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, map_with_path
from jaxllm.config import RopeScaling, TransformerConfig
from jaxllm.models.block import Memory
from jaxllm.models.cache import Cache, empty_cache
from jaxllm.models.transformer import Output, Transformer, decode, encode, memory_cache, per_layer
from tests.models.small import parameters

DECODER = TransformerConfig(
    vocab_size=31,
    width=16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn=24,
    max_positions=16,
    init_std=0.3,
)
ENCODER = replace(
    DECODER,
    architecture="encoder",
    norm="layer",
    norm_place="post",
    embedding_norm=True,
    mlp="gelu_erf",
    positions="learned",
    token_types=2,
)
GEMMA = replace(
    DECODER,
    norm_place="both",
    zero_centred_norms=True,
    embedding_scale=True,
    sliding_window=3,
    global_every=2,
    rope_scaling=RopeScaling(kind="linear", factor=4.0),
    local_rope_theta=50.0,
    qk_norm="head",
    attention_scale=0.3,
    attention_softcap=3.0,
)
RELATIVE = replace(DECODER, positions="relative", relative_buckets=8, relative_distance=10, attention_scale=1.0)
T5 = replace(RELATIVE, architecture="encoder_decoder", encoder_layers=2)
BART = replace(
    ENCODER, architecture="encoder_decoder", encoder_layers=2, token_types=0, position_offset=2, attention_bias="all"
)
B, T, S = 2, 12, 9
random = np.random.default_rng(0)
TOKENS, READ = (jnp.asarray(random.integers(0, DECODER.vocab_size, (B, n)), jnp.int32) for n in (T, S))


@functools.partial(jax.jit, static_argnums=0)
def encoded(config: TransformerConfig, params: Tree, tokens: jax.Array = READ, **named: jax.Array) -> jax.Array:
    return encode(Transformer(config), params, tokens, **named).hidden


@functools.partial(jax.jit, static_argnums=0)
def decoded(config: TransformerConfig, params: Tree, tokens: jax.Array = TOKENS, **named: Tree) -> Output:
    return decode(Transformer(config), params, tokens, **named)


def test_an_encoder_without_positions_is_permutation_equivariant():
    order = np.random.default_rng(1).permutation(S)
    for config, is_equal in ((replace(ENCODER, positions="none"), True), (ENCODER, False)):
        params = parameters(config)
        difference = encoded(config, params)[:, order] - encoded(config, params, READ[:, order])
        assert (np.abs(difference).max() < 1e-5) == is_equal


def test_a_token_of_an_encoder_sees_its_whole_segment_and_no_other():
    params, segments = parameters(ENCODER), jnp.asarray(np.arange(S) // 4)[None].repeat(B, 0)
    before = encoded(ENCODER, params, segments_BT=segments)
    after = encoded(ENCODER, params, READ.at[:, 3].add(1) % 31, segments_BT=segments)
    same = np.all(before == after, axis=(0, 2))
    assert same.tolist() == 4 * [False] + 5 * [True]


def test_token_types_are_added_to_the_embedding_and_are_the_first_unless_given():
    params = parameters(ENCODER)
    zero, one = (encoded(ENCODER, params, types_BT=jnp.full_like(READ, kind)) for kind in (0, 1))
    np.testing.assert_array_equal(encoded(ENCODER, params), zero)
    assert np.abs(zero - one).max() > 0.1
    table, types = params["embedding"]["tokens"], params["embedding"]["types"]
    shifted = {**params, "embedding": {**params["embedding"], "tokens": table + types[1], "types": 0 * types}}
    np.testing.assert_allclose(encoded(ENCODER, shifted), one, atol=1e-5)


def test_the_first_rows_of_the_position_table_are_left_out_by_the_offset():
    config = replace(ENCODER, position_offset=2)
    params = parameters(config)
    rows = params["embedding"]["positions"]
    assert rows.shape[0] == ENCODER.max_positions + 2
    plain = {**params, "embedding": {**params["embedding"], "positions": rows[2:]}}
    np.testing.assert_array_equal(encoded(config, params), encoded(ENCODER, plain))


def test_every_second_layer_has_no_window_and_another_rotation():
    params = parameters(GEMMA)
    alone = [{**params, "layers": jax.tree.map(lambda x, i=i: x[i : i + 1], params["layers"])} for i in (0, 1)]
    windowed = replace(GEMMA, layers=1, global_every=None)
    everywhere = replace(windowed, sliding_window=None, local_rope_theta=None)
    near, far = (
        decoded(config, one, TOKENS.at[:, 0].add(1) % 31).hidden != decoded(config, one).hidden
        for config, one in zip((windowed, everywhere), alone, strict=True)
    )
    assert near.any(axis=(0, 2)).tolist() == 3 * [True] + (T - 3) * [False]
    assert far.any(axis=(0, 2)).all()
    unscaled = replace(windowed, rope_theta=50.0, local_rope_theta=None, rope_scaling=RopeScaling())
    np.testing.assert_array_equal(decoded(windowed, alone[0]).hidden, decoded(unscaled, alone[0]).hidden)
    for kept, config in enumerate((windowed, everywhere)):
        silent = map_with_path(functools.partial(silenced, kept), params)
        np.testing.assert_allclose(decoded(GEMMA, silent).hidden, decoded(config, alone[kept]).hidden, atol=1e-5)


def silenced(kept: int, path: str, leaf: jax.Array) -> jax.Array:
    """All layers but one write nothing: the norms after their branches scale by 0."""
    return jnp.full_like(leaf, -1).at[kept].set(leaf[kept]) if path.endswith("post_norm/scale") else leaf


def test_one_window_in_all_layers_equals_layers_that_are_told_one_by_one():
    """The scan branches only where layers differ; a loop over them never does."""
    params = parameters(GEMMA)
    loop = decoded(GEMMA, {**params, "layers": per_layer(params["layers"])}).hidden
    np.testing.assert_allclose(decoded(GEMMA, params).hidden, loop, atol=1e-5)


def test_layers_that_are_told_one_by_one_drop_and_route_as_a_stack_does():
    config = replace(GEMMA, experts=4, dropout=0.2, mlp="geglu")
    params, key = parameters(config), jax.random.key(5)
    stack, loop = (
        decoded(config, given, dropout_key=key) for given in (params, {**params, "layers": per_layer(params["layers"])})
    )
    np.testing.assert_allclose(stack.hidden, loop.hidden, atol=1e-5)
    np.testing.assert_allclose(stack.router, loop.router, atol=1e-6)
    assert np.abs(stack.hidden - decoded(config, params).hidden).max() > 0.1


def memory_of(config: TransformerConfig, params: Tree, lengths: jax.Array) -> Memory:
    segments = (jnp.arange(S) < lengths[:, None]).astype(jnp.int32)
    return Memory(encoded(config, params, segments_BT=segments), segments)


@pytest.mark.parametrize("config", [GEMMA, RELATIVE, T5, BART], ids=["windows", "relative", "t5", "bart"])
def test_cached_decoding_equals_the_full_pass(config):
    """Padded prompts by the scan, then token by token by the loop over layers."""
    params, lengths, padded, read = parameters(config), jnp.asarray([7, 3]), 8, jnp.asarray([S, 5])
    cache, given = empty_cache(config, B, T, jnp.float32), {}
    if config.architecture == "encoder_decoder":
        memory = memory_of(config, params, read)
        given["memory"] = memory
        made = jax.jit(memory_cache, static_argnums=0)(Transformer(config), params, memory.hidden_BSD, read)
        cache = cache._replace(memory=made)
    full = decoded(config, params, **given).hidden
    prompt, cache, _ = decoded(config, params, TOKENS[:, :padded], cache=cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], full[row, :length], atol=1e-4)
    params = params | {"layers": per_layer(params["layers"])}
    memory = cache.memory
    if memory is not None:
        again = memory_cache(Transformer(config), params, given["memory"].hidden_BSD, read)
        np.testing.assert_allclose(jnp.stack(again.values), memory.values, atol=1e-5)
        memory = memory._replace(keys=per_layer(memory.keys), values=per_layer(memory.values))
    cache = Cache(per_layer(cache.keys), per_layer(cache.values), lengths, memory)
    for _ in range(T - int(lengths.max())):
        here = cache.length
        x, cache, _ = decoded(config, params, jnp.take_along_axis(TOKENS, here[:, None], axis=1), cache=cache)
        np.testing.assert_allclose(x[:, 0], full[np.arange(B), here], atol=1e-4)


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_a_decoder_reads_the_real_tokens_of_the_encoder_and_nothing_of_padding(config):
    params, lengths = parameters(config), jnp.asarray([S, 5])
    memory = memory_of(config, params, lengths)
    before = decoded(config, params, memory=memory).hidden
    for row, place, has_effect in ((1, 6, False), (1, 4, True), (0, 8, True)):
        other = memory._replace(hidden_BSD=memory.hidden_BSD.at[row, place].add(1.0))
        change = np.abs(decoded(config, params, memory=other).hidden - before).max(axis=(1, 2))
        assert change[1 - row] == 0
        assert (change[row] > 1e-3) == has_effect


def test_the_stacks_of_a_pair_share_the_embedding_and_nothing_else():
    for config in (T5, BART):
        params, lengths = parameters(config), jnp.asarray([S, 5])
        halved = {**params, "encoder": jax.tree.map(lambda x: x / 2, params["encoder"])}
        memory = memory_of(config, params, lengths)
        np.testing.assert_array_equal(
            decoded(config, halved, memory=memory).hidden, decoded(config, params, memory=memory).hidden
        )
        assert np.abs(encoded(config, halved) - encoded(config, params)).max() > 0.01
        decoder = {**params, "layers": jax.tree.map(lambda x: x / 2, params["layers"])}
        np.testing.assert_array_equal(encoded(config, decoder), encoded(config, params))
