"""The same inputs through transformers and through our model."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.common.trees import Tree
from jaxllm.config import MeshConfig, TransformerConfig, UserError
from jaxllm.interop.convert import Conversion, is_bare, load, plan_import
from jaxllm.interop.open import open_published
from jaxllm.models.block import Memory
from jaxllm.models.heads import head_logits, label_logits
from jaxllm.models.transformer import Transformer, decode, encode
from jaxllm.sharding.mesh import make_mesh

ROWS = (24, 17)
"""Tokens of the texts that are compared; the second one is padded."""


class Inputs(NamedTuple):
    """Two rows of random tokens."""

    tokens_BT: np.ndarray
    real_BT: np.ndarray
    """False is padding."""
    written_BT: np.ndarray
    """For a decoder that attends to an encoder."""


class Agreement(NamedTuple):
    """How far two models' outputs are apart."""

    difference: float
    """The greatest one of any two numbers."""
    largest: float
    """Of the numbers themselves."""
    same_best: float
    """The share of positions at which both have the same greatest one."""

    @property
    def is_rounding(self) -> bool:
        """Whether float32 in another order explains it."""
        return self.difference <= 1e-3 * max(self.largest, 1.0)

    def __str__(self) -> str:
        return (
            f"differ by at most {self.difference:.2e}, of numbers up to {self.largest:.2f}; the greatest is the same "
            f"at {self.same_best:.1%} of positions"
        )


class Verified(NamedTuple):
    """What `verify` finds."""

    theirs: Agreement
    """Between transformers and us, both of what is read of the files."""
    kept: Agreement
    """Between what is read of the files and the parameters that were made of them, or of which they were made."""

    def is_sound(self, is_rounded: bool) -> bool:
        """Whether the same was kept, or, where another type rounds it, numbers."""
        is_kept = np.isfinite(self.kept.difference) if is_rounded else self.kept.difference == 0
        return self.theirs.is_rounding and bool(is_kept)

    def __str__(self) -> str:
        return (
            f"logits of ours and of transformers {self.theirs}\n"
            f"logits of the model folder and of the published files {self.kept}"
        )


def verify(path: Path, config: TransformerConfig, params: Tree) -> Verified:
    """Holds the published model at `path` against transformers, and against the model that we have of it.

    Raises:
        UserError: it cannot be opened, by us or by transformers, or torch or transformers are not installed.
    """
    published = open_published(path)
    conversion = plan_import(published)
    given = inputs(conversion.config)
    read = load(published, conversion, make_mesh(MeshConfig(data=1), jax.local_devices()[:1]), "float32")
    mine = ours(conversion.config, read, given)
    return Verified(
        agreement(conversion.config, given, mine, theirs(path, conversion, given)),
        agreement(conversion.config, given, ours(config, params, given), mine),
    )


def inputs(config: TransformerConfig) -> Inputs:
    """Always the same ones; ids from 3 on, since padding and the like are often treated apart."""
    random, length = np.random.default_rng(0), min(max(ROWS), config.max_positions)
    tokens, written = random.integers(min(3, config.vocab_size - 1), config.vocab_size, (2, len(ROWS), length))
    real = np.arange(length) < np.array(ROWS)[:, None]
    return Inputs(np.where(real, tokens, 0).astype(np.int32), real, written.astype(np.int32))


def ours(config: TransformerConfig, params: Tree, given: Inputs) -> np.ndarray:
    """Logits `[B, T, V]`, logits of labels `[B, Z]`, or hidden states `[B, T, D]` of an encoder without a head."""
    params = jax.device_put(params, SingleDeviceSharding(jax.local_devices()[0]))
    with jax.default_matmul_precision("highest"):
        return np.asarray(_outputs(config, params, *given))


@functools.partial(jax.jit, static_argnums=0)
def _outputs(
    config: TransformerConfig, params: Tree, tokens_BT: jax.Array, real_BT: jax.Array, written_BT: jax.Array
) -> jax.Array:
    model, segments_BT = Transformer(config), real_BT.astype(jnp.int32)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if config.architecture == "decoder":
        hidden = decode(model, params, tokens_BT, None, segments_BT).hidden
    else:
        hidden = encode(model, params, tokens_BT, None, segments_BT).hidden
    if config.architecture == "encoder_decoder":
        hidden = decode(model, params, written_BT, memory=Memory(hidden, segments_BT)).hidden
    if config.labels:
        return label_logits(params, hidden, config)
    return hidden if is_bare(config) else head_logits(params, hidden, config)


def theirs(path: Path, conversion: Conversion, given: Inputs) -> np.ndarray:
    """The same of transformers, in float32, by the class that has the heads of the model.

    Raises:
        UserError: torch or transformers are not installed, or transformers cannot open or run the model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"--verify needs {error.name}: pip install 'jaxllm[bench]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, more = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    [name] = conversion.family.write(conversion.config)["architectures"]
    named: dict[str, Any] = {
        "input_ids": torch.from_numpy(given.tokens_BT).long(),
        "attention_mask": torch.from_numpy(given.real_BT).long(),
    }
    if conversion.config.architecture == "encoder_decoder":
        named["decoder_input_ids"] = torch.from_numpy(given.written_BT).long()
    try:
        model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **more).eval()
        with torch.no_grad():
            out = model(**named)
    except Exception as error:  # it raises whatever happens
        raise UserError(f"transformers cannot open '{path}' as {name}: {error}") from None
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float().numpy()


def agreement(config: TransformerConfig, given: Inputs, mine: np.ndarray, other: np.ndarray) -> Agreement:
    """Of two outputs, padding left out.

    Raises:
        UserError: they are of different shapes.
    """
    if mine.shape != other.shape:
        raise UserError(f"our outputs have the shape {list(mine.shape)}, and the others {list(other.shape)}")
    if mine.ndim == 3 and config.architecture != "encoder_decoder":
        mine, other = mine[given.real_BT], other[given.real_BT]
    same = np.argmax(mine, axis=-1) == np.argmax(other, axis=-1)
    return Agreement(float(np.abs(mine - other).max()), float(np.abs(other).max()), float(same.mean()))
