"""A tokenizer that spells rare characters in bytes, and models whose next token is known."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, nest
from jaxllm.config import TokenizerConfig, TransformerConfig
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.models.table import parameter_table

TEXT = "the quick brown fox jumps over the lazy dog\nand then there were none of them, one by one\n"


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([TEXT * 20], TokenizerConfig(vocab_size=340), path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path)


LLAMA = TransformerConfig(
    vocab_size=340, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=24, max_positions=64, init_std=0.3
)
CONFIGS = {
    "grouped queries": LLAMA,
    "window": replace(LLAMA, sliding_window=5, tied_embeddings=False, qk_norm="head"),
    "learned positions": replace(
        LLAMA, positions="learned", norm="layer", mlp="gelu", attention_bias="all", mlp_bias=True
    ),
    "soft-caps": replace(LLAMA, attention_softcap=2.0, logit_softcap=3.0, embedding_scale=True),
    "parallel": replace(LLAMA, parallel_residual=True, kv_heads=1, tied_embeddings=False),
}


def random_params(config: TransformerConfig) -> Tree:
    """All leaves random, so that one that is left out is seen."""
    random = np.random.default_rng(0)
    table = parameter_table(config).items()
    draws = {path: leaf.start + (leaf.std or 0.1) * random.normal(size=leaf.shape) for path, leaf in table}
    return nest({path: jnp.asarray(draw, jnp.float32) for path, draw in draws.items()})


def chain(successors: dict[int, int], vocab_size: int) -> tuple[TransformerConfig, Tree]:
    """A model that follows each token with its successor, almost surely at any temperature."""
    config = replace(LLAMA, vocab_size=vocab_size, width=vocab_size, layers=1, tied_embeddings=False)
    params = {path: np.zeros(leaf.shape, np.float32) for path, leaf in parameter_table(config).items()}
    params["embedding/tokens"] = np.eye(vocab_size, dtype=np.float32)
    params["final_norm/scale"] = np.full(vocab_size, 10.0, np.float32)
    for token, successor in successors.items():
        params["head/kernel"][token, successor] = 1.0
    return config, nest({path: jnp.asarray(x) for path, x in params.items()})
