"""Embeddings of texts: what an encoder makes of each, as one vector.

Texts are packed into rows, each a segment of its own, so that no product is spent on padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.common.json_files import read_json
from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig, UserError
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.generation.rows import laid, packed, tokens_at_once
from jaxllm.models.heads import mean_pooled, pooled
from jaxllm.models.transformer import Transformer, cast_for_use, dtype_for_use, encode

SHORTEST_TEXT = 2
"""Tokens of the shortest text: its begin and its end."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How hidden states become one vector."""

    kind: Literal["mean", "first", "pooler"] = "mean"
    """Of all tokens; of the first one; or of the first one through the model's pooler."""
    normalise: bool = True
    """Divide by the length, so that products are cosines."""
    max_tokens: int | None = None
    """Of a text, begin and end included; none means the model's positions."""


def published_pooling(folder: Path) -> Pooling:
    """What sentence-transformers' files in a model folder say; the mean, normalised, where there are none.

    Raises:
        UserError: a way of pooling that is not known, or a file that cannot be read.
    """
    modules, pooled_by, sizes = (
        folder / name for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
    )
    if not pooled_by.is_file():
        return Pooling()
    pooling = read_json(pooled_by, dict)
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    kinds: dict[str, Literal["mean", "first"]] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(chosen) != 1 or chosen[0] not in kinds:
        raise UserError(f"'{pooled_by}' asks for {chosen}: one of {', '.join(kinds)} would do")
    steps = read_json(modules, list) if modules.is_file() else []
    normalises = any(isinstance(step, dict) and str(step.get("type")).endswith("Normalize") for step in steps)
    longest = read_json(sizes, dict).get("max_seq_length") if sizes.is_file() else None
    if longest is not None and type(longest) is not int:
        raise UserError(f"'{sizes}': max_seq_length = {longest!r:.40}: expected a whole number")
    return Pooling(kind=kinds[chosen[0]], normalise=normalises, max_tokens=longest)


class Embedder:
    """Embeds texts with one model. Programs are compiled when first needed, and kept."""

    def __init__(
        self, config: TransformerConfig, params: Tree, tokenizer: Tokenizer, pooling: Pooling, dtype: Any = None
    ):
        """
        Args:
            config: the model's shape.
            params: its parameters; they are copied onto the first local device.
            tokenizer: its tokenizer.
            pooling: how a text becomes one vector.
            dtype: of weights and products; none means float32 on CPU and bfloat16 elsewhere.

        Raises:
            UserError: the model is no encoder, has no pooler where one is asked for, or cannot read so many tokens.
        """
        if config.architecture != "encoder":
            raise UserError(f"a model of the architecture {config.architecture!r} makes no embeddings; an encoder does")
        if pooling.kind == "pooler" and not config.pooler:
            raise UserError("--pooling.kind pooler: this model has none; mean or first would do")
        most = config.max_positions if pooling.max_tokens is None else pooling.max_tokens
        if not SHORTEST_TEXT < most <= config.max_positions:
            raise UserError(
                f"--pooling.max-tokens {most}: expected {SHORTEST_TEXT + 1} to {config.max_positions} (max_positions)"
            )
        device = jax.local_devices()[0]
        dtype = dtype_for_use(dtype)
        self._at_once = tokens_at_once(device.platform)
        self.width, self._tokenizer, self._pooling, self._most = config.width, tokenizer, pooling, most
        model = Transformer(config, dtype=dtype)
        params = jax.device_put(params, SingleDeviceSharding(device))
        self._params = jax.jit(cast_for_use, static_argnums=1)(params, dtype)
        self._run = jax.jit(lambda params, *rows: _vectors(model, pooling, params, *rows))

    def embed(self, texts: Sequence[str], on_done: Callable[[int], None] = lambda done: None) -> np.ndarray:
        """`[texts, D]` in float32, in the order of the texts; `on_done` is called with how many are done.

        What a text has beyond `max_tokens` is left out.
        """
        tokens = self._tokens(texts)
        found, done = np.zeros((len(texts), self.width), np.float32), 0
        for (batch, vectors), _ in pairwise(chain(self._running(tokens), (None,))):  # one late: the device has work
            for texts_of_row, vectors_SD in zip(batch, np.asarray(vectors), strict=False):
                found[texts_of_row] = vectors_SD[: len(texts_of_row)]
            done += sum(map(len, batch))
            on_done(done)
        return found

    def _running(self, tokens: Sequence[Sequence[int]]) -> Iterator[Any]:
        """Batches: the texts of each row, and what is computed of them."""
        for length, rows in packed(np.array([len(ids) for ids in tokens], np.int64), self.width).items():
            size = max(1, self._at_once // length)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                yield batch, self._run(self._params, *laid(tokens, batch, size, length))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        return [[bos, *ids[: self._most - 2], eos] for ids in self._tokenizer.encode_batch(texts)]


def _vectors(
    model: Transformer,
    pooling: Pooling,
    params: Tree,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
) -> jax.Array:
    """`[B, segments, D]` of the segments 1, 2, ... of each row."""
    hidden_BTD = encode(model, params, tokens_BT, positions_BT, segments_BT).hidden
    segments = tokens_BT.shape[1] // SHORTEST_TEXT
    if pooling.kind == "mean":
        vectors = mean_pooled(hidden_BTD, segments_BT, segments)
    else:
        firsts = jnp.argmax(segments_BT[:, None] == jnp.arange(1, segments + 1)[:, None], axis=-1)
        first = jnp.take_along_axis(hidden_BTD, firsts[..., None], axis=1)
        vectors = pooled(params, first) if pooling.kind == "pooler" else first
    vectors = vectors.astype(jnp.float32)
    if not pooling.normalise:
        return vectors
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
