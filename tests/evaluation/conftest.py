"""A tokenizer, and a small decoder with random parameters."""

from dataclasses import replace

import numpy as np
import pytest

from jaxllm.config import RunConfig, TokenizerConfig
from jaxllm.data.chat_template import ChatTemplate
from jaxllm.evaluation.likelihood import Scorer
from jaxllm.evaluation.model import Model
from tests.generation.conftest import LLAMA, random_params, tokenizer, tokenizer_path  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def params():
    return random_params(LLAMA)


@pytest.fixture(scope="session")
def scorer(params):
    return Scorer(LLAMA, params)


@pytest.fixture
def draw():
    """Draws that many ids."""
    random = np.random.default_rng(0)
    return lambda n: random.integers(1, LLAMA.vocab_size, n).tolist()


TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('I do') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def plain(params, tokenizer):  # noqa: F811
    """A model that reads plain text."""
    config = RunConfig(model=LLAMA, tokenizer=TokenizerConfig(vocab_size=340, begins_prompts=False))
    ends = frozenset({tokenizer.eos_id})
    return Model("plain", "its hash", config, params, tokenizer, None, ends, None)


@pytest.fixture
def talking(plain):
    """The same, with a chat template."""
    return replace(plain, template=ChatTemplate(TEMPLATE))
