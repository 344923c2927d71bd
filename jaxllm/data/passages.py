"""Which documents say the same in other words: rows that several templates made of one record, texts with quotations.

They share a passage, and where they end with an answer, the answer too.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COMMON = 30
"""Documents that have a passage, at most; of more it is the wording of a template, or a saying."""

FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no bit of a word is lost (2^64 divided by the golden ratio)."""


def passages(text: str, answer: str, words: int) -> np.ndarray:
    """Hashes of all runs of so many words of a text, each with the answer, uint64 [n]; cases and signs are ignored."""
    hashes = _hashes(text)
    runs = max(0, len(hashes) - words + 1)
    found = np.full(runs, zlib.crc32(_hashes(answer).tobytes()), np.uint64)
    for i in range(words):
        found = found * FACTOR + hashes[i : i + runs]
    return np.unique(found)


def _hashes(text: str) -> np.ndarray:
    return np.array([zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())], np.uint64)


def sharing(passages_of: Sequence[np.ndarray]) -> np.ndarray:
    """A number for each document, int32 [documents]: the same for those that a chain of shared passages connects.

    Args:
        passages_of: each document.
    """
    count = len(passages_of)
    hashes = np.concatenate([np.zeros(0, np.uint64), *passages_of])
    documents = np.repeat(np.arange(count), [len(found) for found in passages_of])
    order = np.argsort(hashes, kind="stable")
    _, first, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    is_shared = np.repeat(sizes <= COMMON, sizes)
    follows = np.ones(len(order), bool)
    follows[first] = False
    at = np.flatnonzero(follows & is_shared)
    one, other = documents[order[at - 1]], documents[order[at]]
    graph = coo_array((np.ones(len(at), np.int8), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
