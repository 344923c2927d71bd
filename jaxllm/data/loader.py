"""Batch k as a pure function of (configuration, seed, k)."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import grain
import numpy as np

from jaxllm.config import DataConfig, UserError
from jaxllm.data.corpus import Corpus, Documents
from jaxllm.data.packing import Plan, corpus_plans

Batch = dict[str, np.ndarray]
"""`tokens`, `targets`, `segments`, `positions`: int32 [B, T]; `weights`: float32 [B, T].

Segments count the pieces of a row from 1; attention stays inside one. Positions start again at 0 in each
piece. Where there is no target, weight and segment are 0.
"""


class Loader:
    """Training batches by number, held-out batches in order; it has no state.

    Each source is shuffled anew in each of its epochs; the sources are interleaved in proportion to their
    weights.
    """

    def __init__(self, corpus: Corpus, data: DataConfig, batch_size: int, seed: int):
        """
        Raises:
            UserError: a negative weight, weights that are all 0, a source with a weight and no training
                document, or a plan that cannot be kept in the cache.
        """
        self.corpus, self.batch_size, self.sequence_length = corpus, batch_size, data.sequence_length
        self._sources = data.sources
        self.plans, self.validation_plan = corpus_plans(corpus, data.sequence_length, data.packing)
        # Rows of all sources have one number: those of source s are first_rows[s] to first_rows[s + 1].
        self._first_rows = np.cumsum([0, *map(len, self.plans)])
        mixed = []
        for s, (source, plan) in enumerate(zip(data.sources, self.plans, strict=True)):
            where = f"data.sources.{s} ({source.path or source.kind})"
            if source.weight < 0:
                raise UserError(f"{where}: weight is {source.weight}; expected 0 or more")
            if source.weight > 0 and not len(plan):
                raise UserError(
                    f"{where} has no training document: all are held out or repeat another source's; "
                    "set its weight to 0 or lower data.validation_fraction"
                )
            if source.weight > 0:
                rows = grain.MapDataset.range(int(self._first_rows[s]), int(self._first_rows[s + 1]))
                mixed.append((source.weight, rows.seed(seed + s).shuffle().repeat()))
        if not mixed:
            raise UserError("every weight in data.sources is 0; give one source a positive weight")
        weights, datasets = zip(*mixed, strict=True)
        self._rows = grain.MapDataset.mix(datasets, weights)

    @property
    def packing_efficiency(self) -> float:
        """The share of the places in training rows that hold a pair."""
        return sum(plan.pairs for plan in self.plans) / (sum(map(len, self.plans)) * self.sequence_length)

    def batch(self, k: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of batch k with these numbers, or all; a host reads only its own."""
        return self._fill([self._place(row) for row in self._numbers(k, rows)])

    def documents(self, k: int, rows: Sequence[int] | None = None) -> list[str]:
        """The names of the documents in batch k, in the order in which they come.

        Where the run has several sources a name begins with that of its own: `data/a.jsonl: a.jsonl:7`.
        """
        names: dict[str, None] = {}
        for number in self._numbers(k, rows):
            documents, plan, row = self._place(number)
            source = self._sources[self._source(number)]
            prefix = f"{source.path or source.kind}: " if len(self._sources) > 1 else ""
            for start, length in plan.row(row):
                first, last = np.searchsorted(documents.starts, [start, start + length], side="right") - 1
                names |= dict.fromkeys(prefix + documents.name(d) for d in range(first, last + 1))
        return list(names)

    def validation_batches(self, batch_size: int, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """All held-out pairs once, in a fixed order; the last batch is filled up with rows of weight 0.

        The rows are in random order, so that the first batches are a fair sample.
        """
        plan = self.validation_plan
        for first in range(0, len(plan), batch_size):
            numbers = [first + b for b in (range(batch_size) if rows is None else rows)]
            yield self._fill([(self.corpus.validation, plan, r) if r < len(plan) else None for r in numbers])

    def iterate(
        self, start: int = 0, rows: Sequence[int] | None = None, ahead: int = 2
    ) -> Generator[Batch, None, None]:
        """Batches `start`, `start + 1`, ... without end, of which `ahead` are made in the background.

        Closing the iterator, or an exception in its consumer's `with contextlib.closing(...)`, ends the
        thread.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            made = deque(pool.submit(self.batch, k, rows) for k in range(start, start + ahead))
            for k in count(start + ahead):
                batch = made.popleft().result()
                made.append(pool.submit(self.batch, k, rows))
                yield batch

    def _numbers(self, k: int, rows: Sequence[int] | None) -> list[int]:
        return [int(self._rows[k * self.batch_size + b]) for b in (range(self.batch_size) if rows is None else rows)]

    def _source(self, row: int) -> int:
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def _place(self, row: int) -> tuple[Documents, Plan, int]:
        source = self._source(row)
        return self.corpus.train[source], self.plans[source], row - int(self._first_rows[source])

    def _fill(self, places: list[tuple[Documents, Plan, int] | None]) -> Batch:
        shape = len(places), self.sequence_length
        batch = {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
        batch |= {name: np.full(shape, self.corpus.tokenizer.pad_id, np.int32) for name in ("tokens", "targets")}
        batch["weights"] = np.zeros(shape, np.float32)
        for b, place in enumerate(places):
            if place is None:
                continue
            documents, plan, row = place
            at = 0
            for segment, (start, length) in enumerate(plan.row(row), 1):
                span = slice(at, at + length)
                batch["tokens"][b, span] = documents.tokens[start : start + length]
                batch["targets"][b, span] = documents.tokens[start + 1 : start + length + 1]
                batch["segments"][b, span] = segment
                batch["positions"][b, span] = np.arange(length)
                at += length
            batch["weights"][b, :at] = 1
        return batch


def loader_speed(loader: Loader, seconds: float = 2.0) -> float:
    """Places in training rows that the loader alone fills in a second, on one thread."""
    loader.batch(0)  # maps the files
    start = time.perf_counter()
    for k in count():
        loader.batch(k)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return (k + 1) * loader.batch_size * loader.sequence_length / elapsed
    raise AssertionError
