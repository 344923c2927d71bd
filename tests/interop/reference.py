"""What fixtures of other people's models and the tests that read them have in common: weights, which are not stored."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"
SEEDS = (0, 1)
IGNORED = -100
"""The reference's label of a token without a loss."""


def drawn(config: Mapping[str, Any], name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """A tensor of the model with this `config.json`.

    Far from the usual start, so that attention is sharp, and norms, biases and tied weights matter.
    """
    centre = len(shape) == 1 and name.endswith("weight") and "gemma" not in config["model_type"]  # of a norm's scale
    # The stream of `default_rng` may change with numpy; this one is frozen.
    frozen = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    return (centre + 0.2 * frozen.standard_normal(shape)).astype(np.float32)
