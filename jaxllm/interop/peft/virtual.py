"""Prompt tuning and prefix tuning as PEFT has them: one tensor `prompt_embeddings`, a row for each virtual token."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from jaxllm.config import PromptConfig, TransformerConfig, TuningConfig, UserError
from jaxllm.interop.settings import Settings

TENSOR = "prompt_embeddings"
PREFIX_KEY, PREFIX_VALUE, PROMPT = "layers/attention/prefix_key", "layers/attention/prefix_value", "prompt/tokens"


def read_virtual(
    settings: Settings, tensors: Mapping[str, np.ndarray], model: TransformerConfig
) -> tuple[TuningConfig, dict[str, np.ndarray]]:
    """What is tuned, and the leaves of the adapter by their paths.

    Raises:
        UserError: another tensor, or one of another size than the base's.
    """
    if set(tensors) != {TENSOR}:
        there = ", ".join(sorted(tensors)) or "none"
        raise UserError(f"{settings.where}: there should be one tensor, {TENSOR}, beside it; there is {there:.200}")
    rows, U = tensors[TENSOR], settings.whole("num_virtual_tokens")
    is_prefix = settings["peft_type"] == "PREFIX_TUNING"
    size = 2 * model.layers * model.kv_heads * model.head_dim if is_prefix else model.width
    if rows.shape != (U, size):
        made_of = (
            f"keys and values of {model.layers} layers with {model.kv_heads} heads of {model.head_dim}"
            if is_prefix
            else f"embeddings of width {model.width}"
        )
        raise UserError(
            f"{settings.where}: is an adapter for another base: its {TENSOR} has the shape {list(rows.shape)}; "
            f"{[U, size]} would do, {U} {made_of}"
        )
    method = "prefix" if is_prefix else "prompt"
    tuning = TuningConfig(method=method, prompt=PromptConfig(length=U, start="uniform"))  # type: ignore[arg-type]
    if not is_prefix:
        return tuning, {PROMPT: rows / np.float32(_embedding_scale(model))}
    sizes = {"L": model.layers, "K": model.kv_heads}
    keys, values = rearrange(rows, "U (L S K H) -> S L U K H", S=2, **sizes)
    return tuning, {PREFIX_KEY: keys, PREFIX_VALUE: values}


def write_virtual(
    leaves: Mapping[str, np.ndarray], model: TransformerConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `adapter_config.json` must say, and the tensor: the inverse of `read_virtual`."""
    if PROMPT in leaves:
        rows = leaves[PROMPT] * np.float32(_embedding_scale(model))
        values: dict[str, Any] = {"token_dim": model.width, "num_attention_heads": model.heads}
        values |= {"prompt_tuning_init": "RANDOM"}
    else:
        both = np.stack([leaves[PREFIX_KEY], leaves[PREFIX_VALUE]])
        rows = rearrange(both, "S L U K H -> U (L S K H)")
        # Of keys: that is how the library finds the size of one head.
        values = {"token_dim": model.kv_heads * model.head_dim, "num_attention_heads": model.kv_heads}
    values |= {"num_virtual_tokens": len(rows), "num_layers": model.layers, "num_transformer_submodules": 1}
    return values, {TENSOR: rows}


def _embedding_scale(model: TransformerConfig) -> float:
    """By what our embeddings are multiplied after virtual tokens have joined them, and theirs before."""
    return model.width**0.5 if model.embedding_scale else 1.0
