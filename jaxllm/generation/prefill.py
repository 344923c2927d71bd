"""How prompts come into a model: as padded tokens, and as what the first step after them starts from.

A decoder reads the prompt itself. An encoder-decoder has its encoder read it, once: each layer's keys and values of
what the encoder made are kept beside the cache, and the text that the decoder writes begins with its start token.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.models.cache import Cache, empty_cache
from jaxllm.models.transformer import Transformer, decode, encode, memory_cache, per_layer

SMALLEST_BUCKET = 16
"""Tokens to which the shortest prompts are padded."""


def prompt_ids(config: TransformerConfig, tokenizer: Tokenizer, prompt: str, begin: bool = True) -> list[int]:
    """The beginning of a document for a decoder, after the token that begins one if it is to `begin` so or if it has no
    other; for an encoder a whole text, as in training, in which `<extra_id_0>` and `<mask>` are what they spell.
    """
    if config.architecture == "decoder":
        ids = tokenizer.encode(prompt)
        return [tokenizer.bos_id, *ids] if begin or not ids else ids
    ids = tokenizer.encode_with_specials(prompt)
    return [*[tokenizer.bos_id] * (tokenizer.bos_id != tokenizer.eos_id), *ids, tokenizer.eos_id]


def padded(prompts: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, P]`, padded on the right, and lengths `[B]`."""
    lengths = np.array([len(row) for row in prompts], np.int32)
    tokens = np.zeros((len(prompts), min(power_of_two(max(map(len, prompts))), most)), np.int32)
    for i, row in enumerate(prompts):
        tokens[i, : len(row)] = row
    return tokens, lengths


def power_of_two(n: int) -> int:
    """The smallest one that is at least `n` and `SMALLEST_BUCKET`."""
    return max(SMALLEST_BUCKET, 1 << (n - 1).bit_length())


def read(
    model: Transformer, slots: int, params: Tree, tokens_BP: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, Cache, jax.Array]:
    """Reads prompts, padded on the right.

    Returns:
        The hidden state `[B, D]` that tells the first new token; a cache of `slots` slots, of which those of padding
        are free again; and which tokens `[B, V]` the text has so far.
    """
    memory = None
    if model.config.architecture == "encoder_decoder":
        segments = (jnp.arange(tokens_BP.shape[1]) < lengths_B[:, None]).astype(jnp.int32)
        memory = memory_cache(model, params, encode(model, params, tokens_BP, None, segments).hidden, lengths_B)
        assert model.config.start_token is not None  # `Generator` puts the padding
        tokens_BP = jnp.full((len(tokens_BP), 1), model.config.start_token, jnp.int32)
        lengths_B = jnp.ones_like(lengths_B)
    B, P = tokens_BP.shape
    empty = empty_cache(model.config, B, P, model.dtype)
    cache = Cache(per_layer(empty.keys), per_layer(empty.values), empty.length, memory)
    hidden, filled, _ = decode(model, params, tokens_BP, cache=cache)
    assert filled is not None
    free = slots - P
    keys = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, free))) for x in filled.keys)
    values = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, free), (0, 0))) for x in filled.values)
    rows, V = jnp.arange(B), model.config.vocab_size
    real_BP = jnp.arange(P) < lengths_B[:, None]
    seen = jnp.zeros((B, V), bool).at[rows[:, None], jnp.where(real_BP, tokens_BP, V)].set(True, mode="drop")
    return hidden[rows, lengths_B - 1], Cache(keys, values, lengths_B, memory), seen
