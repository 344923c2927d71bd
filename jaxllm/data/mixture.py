"""How often each task is trained on."""

from collections.abc import Sequence

import numpy as np

from jaxllm.config import DataConfig


def row_shares(data: DataConfig, sources: Sequence[int], rows: Sequence[int], examples: Sequence[int]) -> np.ndarray:
    """The share of the training rows that each task has, float64 [tasks].

    A mixture is of examples: a row of short ones holds many, and must come less often. (By `weights` it is of rows, as
    of sources of text, and each example of a source comes equally often.) Examples-proportional mixing with a limit and
    temperature-scaled mixing are those of T5 (1910.10683, section 3.5.2).

    Args:
        data: has the mixture, and the weights of sources.
        sources: of each task.
        rows: training rows of each task.
        examples: in all of them.
    """
    row, example, source = np.array(rows, float), np.array(examples, float), np.array(sources)
    weight = np.array([data.sources[s].weight for s in sources])
    if data.mixture.kind == "weights":
        of_source = np.bincount(source, row)[source]
        wanted = weight * row / np.maximum(of_source, 1)
    else:
        exponent = 1 / data.mixture.temperature if data.mixture.kind == "temperature" else 1.0
        counted = np.minimum(example, np.inf if data.mixture.cap is None else data.mixture.cap)
        wanted = weight * counted**exponent * row / np.maximum(example, 1)
    wanted = np.where(row > 0, wanted, 0.0)
    return wanted / max(wanted.sum(), np.finfo(float).tiny)


def example_shares(shares: np.ndarray, rows: Sequence[int], examples: Sequence[int]) -> np.ndarray:
    """The share of the examples that each task has, given that of rows."""
    expected = shares * np.array(examples) / np.maximum(rows, 1)
    return expected / max(expected.sum(), np.finfo(float).tiny)
