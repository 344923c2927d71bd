"""Plans which tokens make which row, as an index that can be read at any row.

A row is one or more pieces, whose sizes add up to at most what it has room for. What a piece is and how large it is
follows from the objective (`jaxllm/data/examples.py`); each is in exactly one row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllm.data.cache import build_once, key_of
from jaxllm.data.corpus import Corpus
from jaxllm.data.token_files import Documents


@dataclass(frozen=True)
class Plan:
    """Row r is made of the pieces `row_starts[r]` to `row_starts[r + 1]`."""

    row_starts: np.ndarray
    """int64 [rows + 1]."""
    starts: np.ndarray
    """int64 [pieces]: the place of a piece's first token in the stream of tokens."""
    lengths: np.ndarray
    """int64 [pieces]: its tokens; or its pairs (input, target) of neighbours, of which it has one less."""

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


def plan_pairs(documents: Documents, sequence_length: int, packing: Packing, before: int = 0) -> Plan:
    """The rows of `sequence_length` pairs of neighbouring tokens that cover all pairs of `documents` once.

    `documents` never joins two documents in a piece; `concatenate` cuts the whole stream, document ends
    included, into windows, one a row. Each piece takes so many places `before` it too.
    """
    borders = documents.starts if packing == "documents" else documents.starts[[0, -1]]
    most = sequence_length - before
    starts, lengths = pieces(borders[:-1], np.diff(borders) - 1, most)  # n tokens are n - 1 pairs
    return arranged(starts, lengths, lengths + before, sequence_length)


def arranged(starts: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, room: int | tuple[int, ...]) -> Plan:
    """Packs pieces into rows, which are shuffled (always in the same way), so that the first ones are a fair sample.

    Args:
        starts: int [pieces].
        lengths: int [pieces].
        sizes: as `pack` takes them.
        room: of a row.
    """
    row_starts, order = pack(sizes, room)
    counts = np.diff(row_starts)
    shuffled = np.random.default_rng(0).permutation(len(counts))
    new_starts = np.concatenate([[0], np.cumsum(counts[shuffled])])
    # Piece j of the new order is piece j - new_starts[r] of the row that r was.
    order = order[np.arange(len(order)) + np.repeat(row_starts[:-1][shuffled] - new_starts[:-1], counts[shuffled])]
    return Plan(new_starts, starts[order], lengths[order])


def corpus_plans(
    corpus: Corpus, key: Sequence[Any], plan: Callable[[Documents], Plan]
) -> tuple[tuple[Plan, ...], tuple[Plan, ...]]:
    """The plans of the training and of the held-out documents of each task, kept in the cache.

    Args:
        corpus: to be planned.
        key: all that `plan` follows from, but for the documents; of what JSON can write.
        plan: makes one.

    Raises:
        UserError: the cache cannot be written, or the plan in it is damaged.
    """
    splits = {"train": corpus.train, "validation": corpus.validation}
    folder = corpus.root / "plans" / key_of([corpus.key, *key])

    def fill(folder: Path) -> dict[str, Any]:
        sizes = {}
        for name, tasks in splits.items():
            made = [plan(documents) for documents in tasks]
            for field in fields(Plan):
                np.save(folder / f"{name}.{field.name}.npy", np.concatenate([getattr(p, field.name) for p in made]))
                sizes[f"{name}.{field.name}"] = [len(getattr(p, field.name)) for p in made]
        return sizes

    sizes = build_once(folder, fill)

    def opened(name: str) -> tuple[Plan, ...]:
        arrays = []
        for field in fields(Plan):
            whole = np.asarray(np.load(folder / f"{name}.{field.name}.npy", mmap_mode="r"))
            arrays.append(np.split(whole, np.cumsum(sizes[f"{name}.{field.name}"])[:-1]))
        return tuple(Plan(*each) for each in zip(*arrays, strict=True))

    return opened("train"), opened("validation")


def pieces(firsts: np.ndarray, sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the pieces into which streams are cut, in order, each of at most `most`.

    Args:
        firsts: int [streams]: the place of each one's first token.
        sizes: int [streams]: what is to be cut; those below 1 give nothing.
        most: the length of all pieces of a stream but the last.
    """
    sizes = np.maximum(sizes, 0)
    counts = -(-sizes // most)
    stream = np.repeat(np.arange(len(sizes)), counts)
    offset = (np.arange(len(stream)) - np.repeat(np.cumsum(counts) - counts, counts)) * most
    return firsts[stream] + offset, np.minimum(sizes[stream] - offset, most)


def pack(sizes: np.ndarray, room: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing bin packing of pieces into rows, which may be limited in several ways at once.

    Works on counts of equal rows, not on pieces (the histogram packing of 2107.02027), so its time depends on
    the number of different rows.

    Args:
        sizes: int [pieces] or [pieces, limits], of 1 to `room`.
        room: of a row, in each way.

    Returns:
        `row_starts` int64 [rows + 1] and `order` int64 [pieces]: row r holds
        `order[row_starts[r]:row_starts[r + 1]]`.
    """
    room = (room,) if isinstance(room, int) else room
    codes = np.ravel_multi_index(tuple(sizes.reshape(-1, len(room)).T), [most + 1 for most in room])
    kinds, kind_of, counts = np.unique(codes, return_inverse=True, return_counts=True)
    kind_sizes = np.stack(np.unravel_index(kinds, [most + 1 for most in room]), axis=1)
    next_piece = np.cumsum(counts) - counts  # of each kind, in the order of kinds
    by_kind = np.argsort(kind_of, kind="stable")
    row_sizes, order = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows, content in _best_fit(kind_sizes, counts, room):
        chosen = np.empty((rows, len(content)), np.int64)
        for column, kind in enumerate(content):
            chosen[:, column] = by_kind[next_piece[kind] : next_piece[kind] + rows]
            next_piece[kind] += rows
        row_sizes.append(np.full(rows, len(content)))
        order.append(chosen.ravel())
    return np.concatenate([[0], np.cumsum(np.concatenate(row_sizes))]), np.concatenate(order)


def _best_fit(kinds: np.ndarray, counts: np.ndarray, room: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number of rows, the kinds of the pieces in each of them), given the sizes of each kind and its pieces."""
    groups: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    """Equal rows by the room that is left in them."""
    rooms = _Rooms(room)
    for kind in np.argsort((kinds / room).max(axis=1), kind="stable")[::-1].tolist():
        size, left = kinds[kind].tolist(), int(counts[kind])
        while left:
            found = rooms.tightest(size)
            if found is None:
                found = room
                rooms.add(room)
                groups[room] = [(left, ())]
            rows, content = groups[found].pop()
            if not groups[found]:
                rooms.remove(found)
            # A row takes equal pieces until no more fit, since it is then itself the tightest.
            each = min(*(have // take for have, take in zip(found, size, strict=True)), left)
            filled = min(rows, left // each)
            left -= filled * each
            for n, taken, more in ((filled, each, (kind,) * each), (rows - filled, 0, ())):
                if n and content + more:
                    now = tuple(have - taken * take for have, take in zip(found, size, strict=True))
                    if not groups.setdefault(now, []):
                        rooms.add(now)
                    groups[now].append((n, content + more))
    for group in groups.values():
        yield from group


class _Rooms:
    """A set of rooms, of which the tightest that holds a piece is found."""

    def __init__(self, whole: tuple[int, ...]):
        self._whole = whole
        self._rooms = np.empty((len(whole), 0), np.int32)
        self._sum = np.empty(0)
        """Of the limits, each taken as a whole."""
        self._slots: dict[tuple[int, ...], int] = {}
        self._free: list[int] = []

    def add(self, room: tuple[int, ...]) -> None:
        if not self._free:
            old = len(self._sum)
            self._free = list(range(old, 2 * old + 64))
            more = np.full((len(self._whole), len(self._free)), -1, np.int32)
            self._rooms = np.concatenate([self._rooms, more], axis=1)
            self._sum = np.concatenate([self._sum, np.zeros(len(self._free))])
        self._slots[room] = slot = self._free.pop()
        self._rooms[:, slot] = room
        self._sum[slot] = sum(have / whole for have, whole in zip(room, self._whole, strict=True))

    def remove(self, room: tuple[int, ...]) -> None:
        slot = self._slots.pop(room)
        self._rooms[:, slot] = -1
        self._free.append(slot)

    def tightest(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """That which has the least in sum."""
        fits = self._rooms[0] >= size[0]
        for have, take in zip(self._rooms[1:], size[1:], strict=True):
            fits &= have >= take
        fitting: np.ndarray = np.flatnonzero(fits)
        if not len(fitting):
            return None
        return tuple(self._rooms[:, fitting[self._sum[fitting].argmin()]].tolist())
