"""Plans which tokens make which row, as an index that can be read at any row.

A row holds pairs (input, target) of neighbouring tokens. The pairs of a document, or of one plain stream, are
cut into pieces of at most T pairs, and a row is one or more pieces whose lengths add up to at most T. Every
pair is in exactly one piece and every piece in exactly one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllm.data.cache import build_once, key_of
from jaxllm.data.corpus import Corpus, Documents


@dataclass(frozen=True)
class Plan:
    """Row r is made of the pieces `row_starts[r]` to `row_starts[r + 1]`."""

    row_starts: np.ndarray
    """int64 [rows + 1]."""
    starts: np.ndarray
    """int64 [pieces]: the place of a piece's first input in the stream of tokens."""
    lengths: np.ndarray
    """int64 [pieces]: its pairs."""

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    @property
    def pairs(self) -> int:
        return int(self.lengths.sum())

    def row(self, row: int) -> Iterator[tuple[int, int]]:
        """(start, length) of each piece of the row."""
        a, b = self.row_starts[row : row + 2]
        return zip(self.starts[a:b].tolist(), self.lengths[a:b].tolist(), strict=True)


Packing = Literal["documents", "concatenate"]


def plan_rows(documents: Documents, sequence_length: int, packing: Packing) -> Plan:
    """The rows of `sequence_length` pairs that cover all pairs of `documents` once.

    `documents` never joins two documents in a piece; `concatenate` cuts the whole stream, document ends
    included, into windows, one a row. Rows are shuffled (always in the same way), so that the first ones are
    a fair sample.
    """
    if packing == "concatenate":
        borders = np.array([0, len(documents.tokens)])
    else:
        borders = documents.starts
    starts, lengths = _pieces(borders, sequence_length)
    row_starts, order = pack(lengths, sequence_length)
    sizes = np.diff(row_starts)
    shuffled = np.random.default_rng(0).permutation(len(sizes))
    new_starts = np.concatenate([[0], np.cumsum(sizes[shuffled])])
    # Piece j of the new order is piece j - new_starts[r] of the row that r was.
    order = order[np.arange(len(order)) + np.repeat(row_starts[:-1][shuffled] - new_starts[:-1], sizes[shuffled])]
    return Plan(new_starts, starts[order], lengths[order])


def corpus_plans(corpus: Corpus, sequence_length: int, packing: Packing) -> tuple[tuple[Plan, ...], Plan]:
    """The plan of each training source and that of the held-out documents, kept in the cache.

    Raises:
        UserError: the cache cannot be written, or the plan in it is damaged.
    """
    splits = {**{f"train-{s}": d for s, d in enumerate(corpus.train)}, "validation": corpus.validation}
    folder = corpus.root / "plans" / key_of([corpus.key, sequence_length, packing])

    def fill(folder: Path) -> dict[str, Any]:
        for name, documents in splits.items():
            plan = plan_rows(documents, sequence_length, packing)
            for field in fields(Plan):
                np.save(folder / f"{name}.{field.name}.npy", getattr(plan, field.name))
        return {}

    build_once(folder, fill)
    plans = [
        Plan(*(np.asarray(np.load(folder / f"{name}.{f.name}.npy", mmap_mode="r")) for f in fields(Plan)))
        for name in splits
    ]
    return tuple(plans[:-1]), plans[-1]


def _pieces(borders: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the pieces of streams that lie between `borders`, in order."""
    pairs = np.maximum(np.diff(borders) - 1, 0)  # n tokens are n - 1 pairs
    counts = -(-pairs // most)
    stream = np.repeat(np.arange(len(pairs)), counts)
    offset = (np.arange(len(stream)) - np.repeat(np.cumsum(counts) - counts, counts)) * most
    return borders[:-1][stream] + offset, np.minimum(pairs[stream] - offset, most)


def pack(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing bin packing of pieces of 1 to `size` into rows of `size`.

    Works on counts of equal rows, not on pieces (the histogram packing of 2107.02027), so its time depends on
    the number of different rows.

    Returns:
        `row_starts` int64 [rows + 1] and `order` int64 [pieces]: row r holds
        `order[row_starts[r]:row_starts[r + 1]]`.
    """
    counts = np.bincount(lengths, minlength=size + 1)
    next_piece = np.cumsum(counts) - counts  # of each length, in the order of lengths
    by_length = np.argsort(lengths, kind="stable")
    row_sizes, order = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows, content in _best_fit(counts, size):
        chosen = np.empty((rows, len(content)), np.int64)
        for column, length in enumerate(content):
            chosen[:, column] = by_length[next_piece[length] : next_piece[length] + rows]
            next_piece[length] += rows
        row_sizes.append(np.full(rows, len(content)))
        order.append(chosen.ravel())
    return np.concatenate([[0], np.cumsum(np.concatenate(row_sizes))]), np.concatenate(order)


def _best_fit(counts: np.ndarray, size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number of rows, the lengths in each of them), given the number of pieces of each length."""
    groups: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    """Equal rows by the room that is left in them."""
    rooms = 0
    """Bit r says that `groups[r]` is not empty: the tightest room is the lowest bit from the length on."""
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                rows, content = groups[room].pop()
                if not groups[room]:
                    rooms ^= 1 << room
            else:
                room, rows, content = size, left, ()
            # A row takes equal pieces until no more fit, since it is then itself the tightest.
            each = min(room // length, left)
            filled = min(rows, left // each)
            left -= filled * each
            for n, room_left, lengths in (
                (filled, room - each * length, content + (length,) * each),
                (rows - filled, room, content),
            ):
                if n and lengths:
                    groups.setdefault(room_left, []).append((n, lengths))
                    rooms |= 1 << room_left
    for group in groups.values():
        yield from group
