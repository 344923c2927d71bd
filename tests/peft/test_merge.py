"""Adapters beside their base: at first nothing changes, folded into it they do the same, and of what rank they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import flatten, nest
from jaxllm.config import LoraConfig, PromptConfig, RankConfig, RunConfig, TransformerConfig, TuningConfig
from jaxllm.models.adapters import adapter_table, trained_table, updates
from jaxllm.models.heads import head_logits
from jaxllm.models.presets import SMOLLM2_135M
from jaxllm.models.transformer import Transformer, decode, initial
from jaxllm.peft.merge import change, effective, folded, folded_leaf, scaled_updates, unfolded
from jaxllm.peft.start import starts
from tests.models.small import parameters

LLAMA = TransformerConfig(vocab_size=64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=64)
GPT2 = dataclasses.replace(
    LLAMA, kv_heads=4, norm="layer", mlp="gelu", positions="learned", attention_bias="all", mlp_bias=True
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)), jnp.int32)
LOW_RANK = {
    "lora": TuningConfig(method="lora", lora=LoraConfig(rank=4)),
    "dora": TuningConfig(method="lora", lora=LoraConfig(rank=4, magnitudes=True)),
    "adalora": TuningConfig(method="adalora", lora=LoraConfig(rank=4)),
}


def logits(model, params, tokens=TOKENS, **inputs):
    return head_logits(params, decode(Transformer(model), params, tokens, **inputs).hidden, model)


def begun(config, base):
    drawn = initial(jax.random.key(1), trained_table(config))
    return nest({**flatten(drawn), **starts(config, flatten(base), [])})


def moved(adapter, scale=0.1):
    random = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + scale * random.normal(size=x.shape).astype(np.float32), adapter)


@pytest.mark.parametrize("name", ["lora", "adalora", "hybrid"])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_at_the_start_logits_are_bit_equal_to_the_base(name, model):
    tuning = dataclasses.replace(TuningConfig(method=name), prompt=PromptConfig(length=3))
    config, base = RunConfig(base="base", model=model, tuning=tuning), parameters(model)
    both = effective(config, begun(config, base), base)
    np.testing.assert_array_equal(jax.jit(logits, static_argnums=0)(model, both), logits_of_base(model, base))


def logits_of_base(model, base):
    return jax.jit(logits, static_argnums=0)(model, base)


def test_gates_at_0_give_the_base_to_the_bit_whatever_is_behind_them():
    tuning = TuningConfig(method="hybrid", prompt=PromptConfig(length=3))
    config, base = RunConfig(base="base", model=LLAMA, tuning=tuning), parameters(LLAMA)
    adapter = flatten(moved(begun(config, base)))
    closed = {path: jnp.zeros_like(x) if path.endswith("gate") else x for path, x in adapter.items()}
    wanted = logits_of_base(LLAMA, base)
    np.testing.assert_array_equal(logits_of_base(LLAMA, effective(config, nest(closed), base)), wanted)
    assert np.abs(logits_of_base(LLAMA, effective(config, nest(adapter), base)) - wanted).max() > 0.1


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_an_adapter_in_its_base_does_what_it_does_beside_it(name, model):
    config, base = RunConfig(base="base", model=model, tuning=LOW_RANK[name]), parameters(model)
    adapter = moved(begun(config, base))
    beside = logits(model, effective(config, adapter, base))
    within = logits(model, folded(config, adapter, base))
    assert np.abs(beside - logits(model, base)).max() > 0.03
    np.testing.assert_allclose(within, beside, atol=1e-5)
    assert set(flatten(folded(config, adapter, base))) == set(flatten(base))


def test_within_a_base_in_bfloat16_an_adapter_is_not_rounded():
    config = RunConfig(base="base", model=LLAMA, tuning=LOW_RANK["lora"])
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters(LLAMA))
    adapter = moved(begun(config, parameters(LLAMA)))
    beside = logits(LLAMA, effective(config, adapter, base))
    np.testing.assert_allclose(logits(LLAMA, folded(config, adapter, base)), beside, atol=1e-5)


def test_a_new_dora_has_the_norms_of_its_base():
    config, base = RunConfig(base="base", model=LLAMA, tuning=LOW_RANK["dora"]), parameters(LLAMA)
    np.testing.assert_allclose(
        logits(LLAMA, effective(config, begun(config, base), base)), logits(LLAMA, base), atol=1e-5
    )


def test_a_change_has_at_most_the_rank_of_its_adapter():
    config, base = RunConfig(base="base", model=LLAMA, tuning=LOW_RANK["lora"]), parameters(LLAMA)
    flat = flatten(scaled_updates(config, moved(begun(config, base))))
    for update in updates(LLAMA, config.tuning):
        leaves = {name: flat[f"{update.module}/{name}"] for name in ("lora_a", "lora_b", "lora_scale")}
        for matrix in np.asarray(change(update, leaves)).reshape(3, update.inputs, update.outputs):
            assert np.linalg.matrix_rank(matrix, tol=1e-5) == 4


def test_the_paper_s_adapters_have_the_paper_s_size():
    for rank, size in ((4, 230_400), (8, 460_800)):
        tuning = TuningConfig(method="lora", lora=LoraConfig(targets=("query_value",), rank=rank))
        assert sum(leaf.size for leaf in adapter_table(SMOLLM2_135M, tuning).values()) == size
    prompt = TuningConfig(method="prompt", prompt=PromptConfig(length=20))
    assert sum(leaf.size for leaf in adapter_table(SMOLLM2_135M, prompt).values()) == 11_520


@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_an_adapter_is_taken_out_of_its_base_again(name):
    config, base = RunConfig(base="base", model=LLAMA, tuning=LOW_RANK[name]), parameters(LLAMA)
    adapter = moved(begun(config, base))
    again = unfolded(config, adapter, folded(config, adapter, base))
    assert set(flatten(again)) == set(flatten(base))
    np.testing.assert_allclose(logits_of_base(LLAMA, again), logits_of_base(LLAMA, base), atol=1e-5)


def test_leaf_by_leaf_an_adapter_becomes_the_same_part_of_its_base():
    tuning = dataclasses.replace(LOW_RANK["dora"], also=("attention/query/kernel", "norm/scale"))
    config, base = RunConfig(base="base", model=LLAMA, tuning=tuning), parameters(LLAMA)
    own = {path: x for path, x in flatten(base).items() if path in trained_table(config)}
    adapter = moved(nest(flatten(begun(config, base)) | own))
    for path, x in flatten(folded(config, adapter, base)).items():
        np.testing.assert_array_equal(folded_leaf(config, path, adapter, flatten(base)[path]), x, err_msg=path)


def test_scales_and_ranks_may_differ_by_module():
    lora = LoraConfig(
        targets=("attention/query$", "mlp/down"), rank=4, alpha=8, ranks=(RankConfig(targets="mlp/", rank=16, alpha=4),)
    )
    query, down = updates(LLAMA, TuningConfig(method="lora", lora=lora))
    assert (query.rank, query.scale, down.rank, down.scale) == (4, 2.0, 16, 0.25)
    stabilised = dataclasses.replace(lora, rank_stabilised=True)
    query, down = updates(LLAMA, TuningConfig(method="lora", lora=stabilised))
    assert (query.scale, down.scale) == (4.0, 1.0)


def test_a_prompt_that_begins_as_tokens_is_these_tokens():
    words = [7, 40, 21]
    whole = jnp.concatenate([jnp.tile(jnp.asarray(words), (2, 1)), TOKENS], axis=1)
    learned = jnp.concatenate([jnp.tile(64 + jnp.arange(3), (2, 1)), TOKENS], axis=1)
    base = parameters(LLAMA)
    wanted = logits(LLAMA, base, whole)[:, 3:]
    for method in ("prompt", "prefix"):
        tuning = TuningConfig(method=method, prompt=PromptConfig(length=3))
        config = RunConfig(base="base", model=LLAMA, tuning=tuning)
        adapter = nest(starts(config, flatten(base), [[word] for word in words]))
        assert set(flatten(adapter)) == set(trained_table(config))
        found = logits(LLAMA, effective(config, adapter, base), learned)[:, 3:]
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=method)


def test_a_virtual_token_may_begin_as_the_mean_of_several():
    tuning = TuningConfig(method="prompt", prompt=PromptConfig(length=2))
    config, base = RunConfig(base="base", model=LLAMA, tuning=tuning), parameters(LLAMA)
    table = np.asarray(base["embedding"]["tokens"])
    found = starts(config, flatten(base), [[3], [4, 9, 9]])["prompt/tokens"]
    np.testing.assert_allclose(found, [table[3], (table[4] + 2 * table[9]) / 3], atol=1e-6)


def test_each_text_of_a_packed_row_has_the_prompt_of_its_own():
    tuning = TuningConfig(method="prefix", prompt=PromptConfig(length=3))
    config, base = RunConfig(base="base", model=LLAMA, tuning=tuning), parameters(LLAMA)
    adapter = moved(begun(config, base), 0.5)
    both = effective(config, adapter, base)
    learned = jnp.tile(64 + jnp.arange(3), (2, 1))
    alone = [logits(LLAMA, both, jnp.concatenate([learned, part], axis=1)) for part in (TOKENS[:, :5], TOKENS[:, 5:])]
    packed = jnp.concatenate([learned, TOKENS[:, :5], learned, TOKENS[:, 5:]], axis=1)
    place = np.concatenate([np.arange(8), np.arange(10)])
    segments = np.repeat([1, 2], [8, 10])
    found = logits(LLAMA, both, packed, positions_BT=jnp.tile(place, (2, 1)), segments_BT=jnp.tile(segments, (2, 1)))
    np.testing.assert_allclose(found, jnp.concatenate(alone, axis=1), atol=1e-5)


def test_the_preset_linear_is_all_maps_of_a_block():
    modules = [update.module for update in updates(LLAMA, TuningConfig(method="lora"))]
    assert modules == [
        *(f"layers/attention/{part}" for part in ("query", "key", "value", "output")),
        *(f"layers/mlp/{part}" for part in ("gate", "up", "down")),
    ]
