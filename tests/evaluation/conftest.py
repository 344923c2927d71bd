"""A tokenizer, and a small decoder with random parameters."""

import numpy as np
import pytest

from jaxllm.evaluation.likelihood import Scorer
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
