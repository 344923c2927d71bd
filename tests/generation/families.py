"""Small models of published families, with weights that every machine draws alike.

`tools/make_beam_fixtures.py` gives them to transformers; so what it finds is all that need be stored.
"""

import zlib

import jax.numpy as jnp
import numpy as np

from jaxllm.common.trees import Tree, nest
from jaxllm.config import TransformerConfig
from jaxllm.models.table import parameter_table

SIZES = {"vocab_size": 40, "width": 16, "heads": 4, "head_dim": 4, "ffn": 24, "max_positions": 64}
PLAIN = {"norm": "layer", "positions": "learned", "attention_bias": "all", "mlp_bias": True}
CONFIGS = {
    "llama": TransformerConfig(**SIZES, layers=2, kv_heads=2),
    "gpt2": TransformerConfig(**SIZES, **PLAIN, layers=1, mlp="gelu"),
    "t5": TransformerConfig(
        **SIZES,
        architecture="encoder_decoder",
        layers=1,
        encoder_layers=3,
        positions="relative",
        relative_buckets=8,
        relative_distance=20,
        mlp="relu",
        attention_scale=1.0,
        logit_scale=0.25,
        start_token=0,
    ),
    "bart": TransformerConfig(
        **SIZES,
        **PLAIN,
        architecture="encoder_decoder",
        layers=1,
        encoder_layers=2,
        norm_place="post",
        embedding_norm=True,
        position_offset=2,
        mlp="gelu_erf",
        head_bias=True,
        start_token=2,
    ),
}
PROMPTS = [[7, 31, 5, 12, 38, 3, 9], [22, 4, 17], [11, 30, 25, 6, 33, 19, 8, 14, 36, 28, 10, 3]]
ENDS = {"llama": 38, "gpt2": 22, "t5": 2, "bart": 35}
"""The token that ends a text, for each one that comes up early in some."""


def drawn_params(config: TransformerConfig) -> Tree:
    """Uniform, each leaf from the stream of its path; only raw bits of numpy's generators never change."""

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        bits = np.random.PCG64(zlib.crc32(path.encode())).random_raw(int(np.prod(shape)))
        return (bits / 2.0**63 - 1.0).reshape(shape)

    table = parameter_table(config).items()
    draws = {path: leaf.start + (1.0 if leaf.std else 0.1) * draw(path, leaf.shape) for path, leaf in table}
    return nest({path: jnp.asarray(x, jnp.float32) for path, x in draws.items()})
