"""Batch k as a pure function of (configuration, seed, k), its noise included."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count

import grain
import numpy as np

from jaxllm.config import DataConfig, ObjectiveConfig, UserError
from jaxllm.data.corpus import Corpus, Documents
from jaxllm.data.examples import make_examples
from jaxllm.data.packing import Plan, corpus_plans

Batch = dict[str, np.ndarray]
"""`tokens`, `targets`, `segments`, `positions`: int32 [B, T]; `weights`: float32 [B, T].

Segments count the pieces of a row from 1; attention stays inside one. Positions start again at 0 in each
piece. Where there is no target, the weight is 0; where there is no token, the segment too.

A causal target is the next token. `prefix` adds `prefix`: bool [B, T], true where a token is seen by all of its
segment; none of these is a target with weight. In `masked`, targets are the tokens of the same places before they were
hidden.

The three that need an encoder and a decoder have the five arrays for the decoder, whose tokens are the targets one
place later, with the start token in front. They add `encoder_tokens`, `encoder_segments` and `encoder_positions`: int32
[B, T of the encoder]. A segment of the decoder belongs to that of the encoder with the same number.
"""

TRAINING, HELD_OUT = 0, 1
"""Which noise a random stream is for."""


class Loader:
    """Training batches by number, held-out batches in order; it has no state.

    Each source is shuffled anew in each of its epochs; the sources are interleaved in proportion to their
    weights.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: DataConfig,
        batch_size: int,
        seed: int,
        objective: ObjectiveConfig = ObjectiveConfig(),
        start_token: int | None = None,
    ):
        """
        Args:
            corpus: what is loaded.
            data: how; of the sources it was made from.
            batch_size: rows in a batch.
            seed: of the order and of the noise.
            objective: what is hidden, and what is to tell.
            start_token: what a decoder beside an encoder reads first in each segment; none is the padding.

        Raises:
            UserError: a negative weight, weights that are all 0, a source with a weight and no training
                document, a plan that cannot be kept in the cache, or what `make_examples` refuses.
        """
        self.corpus, self.batch_size, self.sequence_length = corpus, batch_size, data.sequence_length
        self._sources, self._seed = data.sources, seed
        self.examples = make_examples(objective, corpus, data, start_token)
        self.plans, self.validation_plan = corpus_plans(corpus, self.examples.key, self.examples.plan)
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
        """The share of the places in training rows that hold a pair, or a token; of encoder and decoder together."""
        places = self.examples.read + self.examples.written
        return sum(map(self.examples.filled, self.plans)) / (sum(map(len, self.plans)) * places)

    @property
    def left_out(self) -> int:
        """Pairs of texts, of all splits, that are longer than a row; nothing else is ever left out."""
        splits = zip((*self.corpus.train, self.corpus.validation), (*self.plans, self.validation_plan), strict=True)
        return sum(len(documents) - len(plan.starts) for documents, plan in splits) if self.examples.whole else 0

    def batch(self, k: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of batch k with these numbers, or all; a host reads only its own."""
        return self._fill(
            [(self._place(int(self._rows[n])), (TRAINING, self._seed, n)) for n in self._numbers(k, rows)]
        )

    def documents(self, k: int, rows: Sequence[int] | None = None) -> list[str]:
        """The names of the documents in batch k, in the order in which they come.

        Where the run has several sources a name begins with that of its own: `data/a.jsonl: a.jsonl:7`.
        """
        names: dict[str, None] = {}
        for number in (int(self._rows[n]) for n in self._numbers(k, rows)):
            documents, plan, row = self._place(number)
            source = self._sources[self._source(number)]
            prefix = f"{source.path or source.kind}: " if len(self._sources) > 1 else ""
            for start, length in plan.row(row):
                ends = [start, start + length + self.examples.beyond - 1]
                first, last = np.searchsorted(documents.starts, ends, side="right") - 1
                names |= dict.fromkeys(prefix + documents.name(d) for d in range(first, last + 1))
        return list(names)

    def validation_batches(self, batch_size: int, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """All held-out pieces once, in a fixed order and with fixed noise, whatever the seed and the batch size.

        The rows are in random order, so that the first batches are a fair sample. The last batch is filled up with rows
        of weight 0.
        """
        plan = self.validation_plan
        for first in range(0, len(plan), batch_size):
            numbers = [first + b for b in (range(batch_size) if rows is None else rows)]
            places = (((self.corpus.validation, plan, r), (HELD_OUT, r)) for r in numbers)
            yield self._fill([place if place[0][2] < len(plan) else None for place in places])

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
        """Of the rows in the order of training, from 0."""
        return [k * self.batch_size + b for b in (range(self.batch_size) if rows is None else rows)]

    def _source(self, row: int) -> int:
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def _place(self, row: int) -> tuple[Documents, Plan, int]:
        source = self._source(row)
        return self.corpus.train[source], self.plans[source], row - int(self._first_rows[source])

    def _fill(self, places: list[tuple[tuple[Documents, Plan, int], tuple[int, ...]] | None]) -> Batch:
        """The rows of these plans, each with the numbers that its noise follows from; none is an empty row."""
        batch = self.examples.empty(len(places))
        for b, place in enumerate(places):
            if place is None:
                continue
            (documents, plan, row), (use, *numbers) = place
            pieces = [documents.tokens[start : start + n + self.examples.beyond] for start, n in plan.row(row)]
            tokens, lengths = np.concatenate(pieces, dtype=np.int32), np.array([len(piece) for piece in pieces])
            for name, x in self.examples.row(tokens, lengths, partial(_noise, use, *numbers)).items():
                batch[name][b, : len(x)] = x
        return batch


def _noise(use: int, *numbers: int) -> np.random.Generator:
    """A stream of its own for each row, so that no other row and no other host has a part in it."""
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(use,)))


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
