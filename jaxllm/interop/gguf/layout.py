"""How tensors lie in GGUF, where it is otherwise than in a Hugging Face folder: both ways."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.interop.gguf.families import Family

CUT = ("pairs of heads", "pairs of kv_heads", "parts of heads")
"""The layouts that cut rows into groups."""


def layout(family: Family, module: str, suffix: str) -> str | None:
    """The layout of a tensor, by the module's Hugging Face name and `.weight` or `.bias`; none: the same in both."""
    found = next((how for end, how in family.layouts.items() if module.endswith(end)), None)
    return None if suffix == ".bias" and found == "transposed" else found


def groups(how: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Into what the rows of a Hugging Face tensor are cut before two of the axes are swapped."""
    heads = config["num_attention_heads"]
    if how == "pairs of heads":
        return heads, 2
    if how == "pairs of kv_heads":
        return config.get("num_key_value_heads") or heads, 2
    return heads, 3


def to_gguf(array: np.ndarray, how: str | None, config: Mapping[str, Any]) -> np.ndarray:
    """A tensor of a Hugging Face folder as it lies in GGUF.

    llama.cpp rotates neighbouring channels of a Llama where Hugging Face rotates one of each half; has queries, keys
    and values of all heads apart where GPT-NeoX has them head by head; stores what a norm multiplies by where Gemma has
    what is added to one; and knows no Conv1D.
    """
    match how:
        case None:
            return array
        case "one more":
            return array.astype(np.float32) + np.float32(1)
        case "transposed":
            return array.T
        case "parts of heads":
            return _cut(array, *groups(how, config)).swapaxes(0, 1).reshape(array.shape)
    return _cut(array, *groups(how, config)).swapaxes(1, 2).reshape(array.shape)


def from_gguf(array: np.ndarray, how: str | None, config: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `to_gguf`."""
    match how:
        case None:
            return array
        case "one more":
            return array.astype(np.float32) - np.float32(1)
        case "transposed":
            return array.T
        case "parts of heads":
            return _cut(array, *groups(how, config)[::-1]).swapaxes(0, 1).reshape(array.shape)
    heads, pair = groups(how, config)
    return array.reshape(heads, -1, pair, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _cut(array: np.ndarray, *rows: int) -> np.ndarray:
    return array.reshape(*rows, array.shape[0] // int(np.prod(rows)), *array.shape[1:])
