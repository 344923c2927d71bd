import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jaxllm.common.trees import Tree
from jaxllm.config import (
    OBJECTIVES_OF,
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    TransformerConfig,
    TuningConfig,
)
from jaxllm.models import presets
from jaxllm.models.heads import head_logits
from jaxllm.models.presets import GPT2_124M, LLAMA2_7B, SMOLLM2_135M
from jaxllm.models.summary import Memory, count_parameters, flops_per_token, memory, parameters_by_module, run_flops
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer, initial
from jaxllm.train.state import run_optimizer
from jaxllm.validation import problems

ODD = TransformerConfig(
    vocab_size=300,
    width=160,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=40,
    ffn=136,
    norm="layer",
    attention_bias="all",
    tied_embeddings=False,
    qk_norm="head",
    positions="learned",
    max_positions=64,
)


BODY = {"head_transform": False, "head_bias": False, "pooler": True}
"""What BERT's publishers count."""


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (presets.GPT2_124M, 124_439_808),
        (presets.PYTHIA_1_4B, 1_414_647_808),
        (presets.PHI_1, 1_418_270_720),
        (presets.SMOLLM2_135M, 134_515_008),
        (presets.LLAMA2_7B, 6_738_415_616),
        (presets.LLAMA3_8B, 8_030_261_248),
        (presets.LLAMA3_1_8B, 8_030_261_248),
        (presets.LLAMA3_2_1B, 1_235_814_400),
        (presets.MISTRAL_7B, 7_241_732_096),
        (presets.MIXTRAL_8X7B, 46_702_792_704),
        (presets.QWEN2_5_0_5B, 494_032_768),
        (presets.QWEN3_0_6B, 596_049_920),
        (presets.GEMMA2_2B, 2_614_341_888),
        (presets.GEMMA3_1B, 999_885_952),
        (presets.OLMO2_7B, 7_298_617_344),
        (presets.BERT_BASE, 109_514_298),
        (replace(presets.BERT_BASE, **BODY), 109_482_240),
        (presets.ROBERTA_BASE, 124_697_433),
        (replace(presets.ROBERTA_BASE, **BODY), 124_645_632),
        (presets.MINILM_L6, 22_713_216),
        (presets.T5_SMALL, 60_506_624),
        (presets.T5_1_1_SMALL, 76_961_152),
        (presets.BART_BASE, 139_420_416 + 50_265),  # the constant on its logits is no parameter there
    ],
)
def test_presets_have_the_parameters_of_the_published_models(config, published):
    assert count_parameters(config) == published


PRESETS = {name: value for name, value in vars(presets).items() if isinstance(value, TransformerConfig)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    model = PRESETS[name]
    objective = ObjectiveConfig(kind=OBJECTIVES_OF[model.architecture][0])
    assert problems(RunConfig(model=model, objective=objective)) == []


def test_modules_add_up_and_carry_their_biases():
    modules = parameters_by_module(ODD)
    assert sum(modules.values()) == count_parameters(ODD)
    assert modules["embedding/tokens"] == modules["head"] == 300 * 160
    assert modules["embedding/positions"] == 64 * 160
    assert modules["layers/attention/query"] == 3 * (160 * 4 * 40 + 4 * 40)
    assert modules["layers/attention/output"] == 3 * (4 * 40 * 160 + 160)
    assert modules["layers/mlp/gate"] == 3 * 160 * 136
    assert modules["final_norm"] == 2 * 160


def test_a_token_costs_six_flops_for_each_weight_it_is_multiplied_with():
    d, f, layers = 768, 3072, 12
    block = 4 * d * d + 2 * d * f
    assert flops_per_token(GPT2_124M, 1024).matrices == 6 * (layers * block + 50257 * d)


def test_a_head_costs_the_same_tied_or_not():
    tied = flops_per_token(ODD, 64), flops_per_token(replace(ODD, tied_embeddings=True), 64)
    assert tied[0] == tied[1]


def test_attention_is_counted_over_the_keys_that_a_token_sees():
    # Two products (scores, values) of 2 FLOPs each forward, twice that backward, for (T + 1) / 2 keys.
    assert flops_per_token(GPT2_124M, 1024).attention == 12 * 12 * 768 * 1025 // 2
    T, W = 20, 6
    seen = sum(min(t + 1, W) for t in range(T))
    assert flops_per_token(replace(GPT2_124M, sliding_window=W), T).attention == 12 * 12 * 768 * seen // T
    wide = replace(GPT2_124M, sliding_window=50)
    assert flops_per_token(wide, T) == flops_per_token(GPT2_124M, T)


def product_flops(jaxpr: Any, times: int = 1) -> int:
    """FLOPs of the matrix products in a traced program, loops counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * times * inner * eqn.outvars[0].aval.size
        for inside in jaxprs_in_params(eqn.params):
            total += product_flops(inside, times * eqn.params.get("length", 1))
    return total


@pytest.mark.parametrize("config", [ODD, replace(ODD, tied_embeddings=True, mlp="gelu")])
def test_flops_are_those_of_the_products_that_the_model_makes(config):
    """Of one token, so that every key that is read is one that it sees."""

    def logits(params: Tree, tokens: jax.Array) -> jax.Array:
        hidden, *_ = Transformer(config).apply({"params": params}, tokens)
        return head_logits(params, hidden, config)

    params = jax.eval_shape(lambda: initial(jax.random.key(0), parameter_table(config)))
    traced = jax.make_jaxpr(logits)(params, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    assert 3 * product_flops(traced.jaxpr) == flops_per_token(config, 1).total


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])
@pytest.mark.parametrize("config", [ODD, replace(ODD, layers=130, width=16, ffn=129)], ids=["wide", "deep"])
def test_memory_is_that_of_the_arrays_which_the_optimizer_makes(kind, config):
    run = RunConfig(model=config, optimizer=OptimizerConfig(kind=kind))
    params = jax.eval_shape(lambda: initial(jax.random.key(0), parameter_table(config)))
    state = jax.eval_shape(run_optimizer(run).init, params)
    # Counters, Muon's coefficients and the placeholders of Adafactor are the leaves of a few numbers.
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.size > 8)
    assert memory(run).optimizer == held
    assert memory(run).parameters == sum(4 * x.size for x in jax.tree.leaves(params))


def test_memory_counts_the_moving_average_only_when_there_is_one():
    size = 4 * count_parameters(ODD)
    assert memory(RunConfig(model=ODD)) == Memory(size, size, 2 * size, 0)
    assert memory(RunConfig(model=ODD, train=TrainConfig(ema_decay=0.9))).total == 5 * size


def test_adamw_and_lion_hold_whole_moments_and_adafactor_hardly_any():
    of = {
        kind: memory(RunConfig(model=LLAMA2_7B, optimizer=OptimizerConfig(kind=kind))).optimizer
        for kind in ("adamw", "lion", "adafactor")
    }
    assert of["adamw"] == 2 * of["lion"] == 8 * 6_738_415_616
    assert of["adafactor"] < of["lion"] / 300


def test_a_tuned_run_holds_its_base_as_it_is_kept_and_makes_no_gradient_of_it():
    lora = LoraConfig(targets=("query_value",), rank=8)
    run = RunConfig(base="base", model=SMOLLM2_135M, tuning=TuningConfig(method="lora", lora=lora, base_dtype="nf4"))
    held, whole = memory(run), memory(RunConfig(model=SMOLLM2_135M))
    assert (held.parameters, held.gradients, held.optimizer) == (4 * 460_800, 4 * 460_800, 8 * 460_800)
    embedding, vectors = 49_152 * 576, 61 * 576
    assert held.frozen == 2 * embedding + 4 * vectors + 4.25 / 8 * (134_515_008 - embedding - vectors)
    full, tuned = flops_per_token(SMOLLM2_135M, 512), run_flops(run)
    assert whole.frozen == 0
    assert tuned.attention == full.attention
    assert tuned.matrices == pytest.approx(full.matrices - 2 * (134_515_008 - vectors) + 6 * 460_800)
