"""Tiny published models of every family, in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.interop.published import Published, Tensor
from tests.interop.reference import FIXTURES, drawn

NAMES = sorted(path.stem for path in FIXTURES.glob("*.npz"))


def published(name: str, seed: int = 0, **changes: Any) -> Published:
    """The model of a fixture."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        config, shapes = (json.loads(str(file[key])) for key in ("config", "shapes"))
    config |= changes
    return of_arrays(config, {name: drawn(config, name, shape, seed) for name, shape in shapes.items()})


def of_arrays(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    """A model of those tensors."""
    stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    tensors = {name: Tensor(x.shape, x.dtype.name, stored[x.dtype.name]) for name, x in arrays.items()}
    return Published(Path("model"), config, tensors, arrays.__getitem__, {})
