"""How often each task is trained on, and its rows in which order."""

from collections.abc import Sequence
from functools import lru_cache

import grain
import numpy as np

from jaxllm.config import DataConfig

RAREST = 1e-9
"""A task with a smaller share of the rows has none."""

FEW = 1024
"""Rows whose order is drawn at once: grain's shuffle, which keeps nothing, walks through about 65,536 numbers to find
one of a few, which takes milliseconds a row of a small task."""


def row_shares(data: DataConfig, sources: Sequence[int], rows: Sequence[int], examples: Sequence[int]) -> np.ndarray:
    """The share of the training rows that each task has, float64 [tasks].

    A mixture is of examples: a row of short ones holds many, and must come less often. (By `weights` it is of rows, as
    of sources of text, and each example of a source comes equally often.) Examples-proportional mixing with a limit and
    temperature-scaled mixing are those of T5 (1910.10683, section 3.5.2).

    Args:
        data: has the mixture, and the weights of sources.
        sources: of each task.
        rows: training rows of each task.
        examples: in all of them; of a text, its rows.
    """
    row, example, source = np.array(rows, float), np.array(examples, float), np.array(sources)
    weight = np.array([data.sources[s].weight for s in sources])
    if data.mixture.kind == "weights":
        of_source = np.bincount(source, row)[source]
        wanted = weight * row / np.maximum(of_source, 1)
    else:
        exponent = 1 / data.mixture.temperature if data.mixture.kind == "temperature" else 1.0
        counted = np.minimum(example, np.inf if data.mixture.cap is None else data.mixture.cap)
        wanted = weight * (counted / max(counted.max(), 1)) ** exponent * row / np.maximum(example, 1)
    wanted = np.where(row > 0, wanted, 0.0)
    wanted[wanted < RAREST * wanted.sum()] = 0.0
    return wanted / max(wanted.sum(), np.finfo(float).tiny)


def shuffled(first: int, stop: int, seed: int) -> grain.MapDataset[int]:
    """The rows `first` to `stop` without end, in each epoch once and in an order of its own."""
    count = stop - first
    rows = grain.MapDataset.range(first, stop)
    if count >= FEW:
        return rows.seed(seed).shuffle().repeat()

    @lru_cache(2)
    def order(epoch: int) -> np.ndarray:
        return first + np.random.default_rng((seed, epoch)).permutation(count)

    return rows.repeat().map_with_index(lambda place, row: int(order(place // count)[row - first]))


def example_shares(shares: np.ndarray, rows: Sequence[int], examples: Sequence[int]) -> np.ndarray:
    """The share of the examples that each task has, given that of rows."""
    expected = shares * np.array(examples) / np.maximum(rows, 1)
    return expected / max(expected.sum(), np.finfo(float).tiny)
