"""Several adapters on one base: each row of a batch has its own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import flatten, nest
from jaxllm.config import LoraConfig, PromptConfig, RunConfig, TuningConfig, UserError
from jaxllm.generation.adapters import Adapters
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.generate import Generator
from jaxllm.models.adapters import trained_table, virtual_tokens
from jaxllm.models.transformer import Transformer, decode, initial
from jaxllm.peft.merge import effective
from tests.generation.conftest import LLAMA, random_params

METHODS = {
    "lora": TuningConfig(method="lora", lora=LoraConfig(targets=("query_value",), rank=3)),
    "dora": TuningConfig(method="lora", lora=LoraConfig(rank=5, magnitudes=True)),
    "adalora": TuningConfig(method="adalora", lora=LoraConfig(targets=("mlp",), rank=2)),
    "prompt": TuningConfig(method="prompt", prompt=PromptConfig(length=4)),
    "prefix": TuningConfig(method="prefix", prompt=PromptConfig(length=2)),
    "hybrid": TuningConfig(method="hybrid", prompt=PromptConfig(length=3)),
    "longer hybrid": TuningConfig(method="hybrid", prompt=PromptConfig(length=5)),
}
NAMES = [*METHODS, None]


@pytest.fixture(scope="module")
def base():
    return random_params(LLAMA)


@pytest.fixture(scope="module")
def given():
    random = np.random.default_rng(2)
    runs = {}
    for name, tuning in METHODS.items():
        config = RunConfig(base="base", model=LLAMA, tuning=tuning)
        drawn = initial(jax.random.key(1), trained_table(config))
        runs[name] = config, jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape).astype(np.float32), drawn)
    return runs


def test_each_row_says_what_its_adapter_says_alone(base, given, tokenizer):
    names, prompts, greedy = (
        ["dora", "prompt", None],
        ["the quick", "one by", "none of"],
        SamplingConfig(temperature=0.0),
    )
    together = Generator(LLAMA, base, tokenizer).with_adapters(Adapters(LLAMA, base, given), names)
    found, said = together.generate(prompts, 12, greedy), []
    for name, prompt in zip(names, prompts, strict=True):
        params, virtual = base, 0
        if name is not None:
            config, trained = given[name]
            params, virtual = effective(config, trained, base), virtual_tokens(config.tuning)
        said.append(Generator(LLAMA, params, tokenizer, virtual=virtual).generate([prompt], 12, greedy)[0].tokens)
    assert [generation.tokens for generation in found] == said
    plain = Generator(LLAMA, base, tokenizer).generate(prompts, 12, greedy)
    assert [one.tokens != other.tokens for one, other in zip(plain, found, strict=True)] == [True, True, False]


def test_hidden_states_of_each_row_are_those_of_its_adapter(base, given):
    adapters = Adapters(LLAMA, base, given)
    words = np.random.default_rng(0).integers(0, 340, (len(NAMES), 6))
    most = max(map(len, adapters.virtual.values()))
    rows = np.zeros((len(NAMES), most + 6), np.int32)
    for i, name in enumerate(NAMES):
        own = adapters.virtual[name]
        rows[i, : len(own) + 6] = [*(340 + v for v in own), *words[i]]
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], base["layers"]) for i in range(LLAMA.layers))
    both = adapters.beside({**base, "layers": layers}, adapters.of_rows(NAMES))
    found = decode(Transformer(LLAMA), both, jnp.asarray(rows)).hidden
    for i, name in enumerate(NAMES):
        own = len(adapters.virtual[name])
        params = base if name is None else effective(*given[name], base)
        alone = decode(Transformer(LLAMA), params, jnp.asarray([[*range(340, 340 + own), *words[i]]])).hidden
        np.testing.assert_allclose(found[i, own : own + 6], alone[0, own:], atol=2e-5, err_msg=str(name))


def test_an_adapter_that_is_not_there_or_of_another_base_is_named(base, given):
    with pytest.raises(UserError, match="no adapter 'other'; there are lora"):
        Adapters(LLAMA, base, given).of_rows(["other"])
    wide = replace(LLAMA, width=32)
    with pytest.raises(UserError, match=r"'lora' is an adapter for another base: its .*/query is \[2, 16"):
        Adapters(wide, random_params(wide), given)
    two = replace(LLAMA, architecture="encoder_decoder", encoder_layers=2, start_token=0)
    with pytest.raises(UserError, match="'lora': adapters beside one another are of decoders"):
        Adapters(two, base, given)
    whole = RunConfig(model=LLAMA), nest(flatten(base))
    with pytest.raises(UserError, match="'whole' has trained parameters of its base"):
        Adapters(LLAMA, base, {"whole": whole})
