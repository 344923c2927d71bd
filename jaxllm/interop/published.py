"""What every format of others is read into and written from: the names, shapes and files of a Hugging Face folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    """As `read` gives it."""
    dtype: str
    """As `read` gives it: `float32`, `float16` or `bfloat16`."""
    stored: str
    """As it lies in the file, such as `BF16` or `Q4_1`."""


@dataclass(frozen=True)
class Published:
    """A model as its publishers gave it away. Opening one reads no tensor."""

    path: Path
    """A folder or a file."""
    config: Mapping[str, Any]
    """What `config.json` holds, or would hold."""
    tensors: Mapping[str, Tensor]
    """By their names in a Hugging Face folder."""
    read: Callable[[str], np.ndarray]
    """One tensor, whole, in its own memory."""
    files: Mapping[str, bytes]
    """Those that there are of `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and the like."""
