"""Which documents say the same in other words: rows that templates made of one record, texts with quotations."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

COMMON = 30
"""Documents that have a passage, at most; of more it is the wording of a template, or a saying."""

FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no bit of a word is lost (2^64 divided by the golden ratio)."""


def passages(text: str, words: int) -> np.ndarray:
    """Hashes of all runs of so many words of a text, each once, uint64 [n]; cases and signs are ignored."""
    hashes = np.array([zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())], np.uint64)
    runs = max(0, len(hashes) - words + 1)
    found = np.zeros(runs, np.uint64)
    for i in range(words):
        found = found * FACTOR + hashes[i : i + runs]
    return np.unique(found)


def sharing(passages_of: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs of documents, int32 [pairs, 2], that connect all that share a passage.

    Args:
        passages_of: each document.
    """
    hashes = np.concatenate([np.zeros(0, np.uint64), *passages_of])
    documents = np.repeat(np.arange(len(passages_of), dtype=np.int32), [len(found) for found in passages_of])
    order = np.argsort(hashes, kind="stable")
    hashes, documents = hashes[order], documents[order]
    first = np.ones(len(hashes), bool)
    first[1:] = hashes[1:] != hashes[:-1]
    sizes = np.diff(np.flatnonzero(first), append=len(hashes))
    later = np.flatnonzero(~first & np.repeat(sizes <= COMMON, sizes))
    return np.stack([documents[later - 1], documents[later]], axis=1)
