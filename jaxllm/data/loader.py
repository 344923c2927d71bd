"""Batch k as a pure function of (configuration, seed, k), its noise included."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import NamedTuple

import grain
import numpy as np

from jaxllm.config import DataConfig, ObjectiveConfig, UserError
from jaxllm.data.corpus import Corpus
from jaxllm.data.examples import Denoised, Examples, Masked, Pieces, Translated
from jaxllm.data.mixture import example_shares, row_shares, shuffled
from jaxllm.data.next_token import NextToken, Supervised
from jaxllm.data.packing import Plan, corpus_plans
from jaxllm.data.token_files import Documents

Batch = dict[str, np.ndarray]
"""`tokens`, `targets`, `segments`, `positions`: int32 [B, T]; `weights`: float32 [B, T].

Segments count the pieces of a row from 1; attention stays inside one. Positions start again at 0 in each
piece. Where there is no target, the weight is 0; where there is no token, the segment too. The weights of training rows
are multiplied by `loss_weight` of their source, and those of each conversation divided by their sum where
`objective.weigh` says so.

A causal target is the next token; in `sft` those that the assistant says have weight. `prefix` adds `prefix`: bool
[B, T], true where a token is seen by all of its segment; none of these is a target with weight. In `masked`, targets
are the tokens of the same places before they were hidden.

The three that need an encoder and a decoder have the five arrays for the decoder, whose tokens are the targets one
place later, with the start token in front. They add `encoder_tokens`, `encoder_segments` and `encoder_positions`: int32
[B, T of the encoder]. A segment of the decoder belongs to that of the encoder with the same number.
"""

TRAINING, HELD_OUT = 0, 1
"""Which noise a random stream is for."""


class Loader:
    """Training batches by number, held-out batches in order; it has no state.

    What is mixed are sources by their weights, or tasks by the numbers of their examples (`mixture.py`). A row is of
    one task. Each part of the mixture is shuffled anew in each of its epochs; all are interleaved in proportion to
    their shares of the rows (of which the smallest is kept to a hundredth of itself).
    """

    def __init__(
        self,
        corpus: Corpus,
        data: DataConfig,
        batch_size: int,
        seed: int,
        objective: ObjectiveConfig = ObjectiveConfig(),
        start_token: int | None = None,
        virtual: range = range(0),
    ):
        """
        Args:
            corpus: what is loaded.
            data: how; of the sources it was made from.
            batch_size: rows in a batch.
            seed: of the order and of the noise.
            objective: what is hidden, and what is to tell.
            start_token: what a decoder beside an encoder reads first in each segment; none is the padding.
            virtual: the ids of virtual tokens that each segment begins with.

        Raises:
            UserError: a negative weight, weights that are all 0, a source with a weight and no training
                document, a plan that cannot be kept in the cache, or what `make_examples` refuses.
        """
        self.corpus, self.batch_size, self.sequence_length = corpus, batch_size, data.sequence_length
        self._sources, self._seed, self._virtual = data.sources, seed, len(virtual)
        self._by_conversation = objective.weigh == "conversations"
        self.examples = make_examples(objective, corpus, data, start_token, virtual)
        self.plans, self.validation_plans = corpus_plans(corpus, self.examples.key, self.examples.plan)
        # Rows of all tasks have one number: those of task t are first_rows[t] to first_rows[t + 1].
        self._first_rows = np.cumsum([0, *map(len, self.plans)])
        self._check_sources()
        kept = zip(corpus.train, self.plans, strict=True)
        # A text has no examples: each of its rows counts as one.
        counts = [len(plan.starts) if self.examples.keeps_whole(documents) else len(plan) for documents, plan in kept]
        rows = [len(plan) for plan in self.plans]
        self.row_shares = row_shares(data, [task.source for task in corpus.tasks], rows, counts)
        """Of the training rows, that each task has; float64 [tasks]."""
        self.shares = example_shares(self.row_shares, rows, counts)
        """Of the training examples, that each task has; float64 [tasks]."""
        self.trained_shares = example_shares(self.row_shares, rows, [each.trained_tokens for each in corpus.train])
        """Of the tokens that are trained, that each task has, about; float64 [tasks]."""
        mixed = [
            (share, shuffled(first, stop, seed + number))
            for number, (share, first, stop) in enumerate(self._parts(data.mixture.kind == "weights"))
            if share > 0
        ]
        shares, datasets = zip(*mixed, strict=True)
        # It makes whole numbers of them, by cutting: 0.3 / 0.1 is a little less than 3.
        self._rows = grain.MapDataset.mix(datasets, np.round(np.array(shares) / min(shares), 9).tolist())
        self._held_out = _mixed([len(plan) for plan in self.validation_plans])

    def _check_sources(self) -> None:
        """
        Raises:
            UserError: of weights that will not do, as `__init__` says.
        """
        for s, source in enumerate(self._sources):
            where = f"data.sources.{s} ({source.path or source.kind})"
            tasks = zip(self.corpus.tasks, self.plans, strict=True)
            if source.weight < 0:
                raise UserError(f"{where}: weight is {source.weight}; expected 0 or more")
            if source.weight > 0 and not any(len(plan) for task, plan in tasks if task.source == s):
                bad = self.corpus.report.bad
                such = f" ({bad.count:,} of {bad.of:,} cannot be used, such as {bad.first[0]})" if bad.count else ""
                raise UserError(
                    f"{where} has no training document: all are held out, repeat another source's or are left out"
                    f"{such}; set its weight to 0, lower data.validation_fraction or raise data.sequence_length"
                )
        if not any(source.weight for source in self._sources):
            raise UserError("every weight in data.sources is 0; give one source a positive weight")

    def _parts(self, by_source: bool) -> list[tuple[float, int, int]]:
        """(share of the rows, first row, the row after the last) of each part of the mixture: a source, or a task."""
        owners = [task.source if by_source else t for t, task in enumerate(self.corpus.tasks)]
        parts = []
        for owner in dict.fromkeys(owners):
            tasks = [t for t, own in enumerate(owners) if own == owner]
            first, stop = self._first_rows[tasks[0]], self._first_rows[tasks[-1] + 1]
            parts.append((float(self.row_shares[tasks].sum()), int(first), int(stop)))
        return parts

    @property
    def packing_efficiency(self) -> float:
        """The share of the places in training rows that hold a pair, or a token; of encoder and decoder together."""
        places = self.examples.read + self.examples.written
        return sum(map(self.examples.filled, self.plans)) / (sum(map(len, self.plans)) * places)

    @property
    def held_out_rows(self) -> int:
        return len(self._held_out)

    @property
    def held_out_pairs(self) -> int:
        """Tokens, or pairs of neighbours, in held-out rows."""
        return sum(plan.pairs for plan in self.validation_plans)

    @property
    def left_out(self) -> int:
        """Pairs of texts and conversations, of all splits, that are longer than a row and in none."""
        return sum(len(documents) - len(plan.starts) for documents, plan in self._whole())

    @property
    def truncated(self) -> int:
        """Conversations, of all splits, of which a row holds a part."""
        masked = ((documents, plan) for documents, plan in self._whole() if documents.trained is not None)
        most = self.sequence_length - self._virtual
        too_long = (int((np.diff(documents.starts) - 1 > most).sum()) for documents, _ in masked)
        return 0 if self.left_out else sum(too_long)

    def losses(self) -> list[str]:
        """What of the sources is in no row, in words."""
        bad = self.corpus.report.bad
        told = (
            (bad.count, f"{bad.count:,} of {bad.of:,} documents could not be used, and were left out"),
            (self.left_out, f"{self.left_out:,} pairs or conversations longer than a row were left out"),
            (self.truncated, f"{self.truncated:,} conversations longer than a row were cut to one"),
        )
        return [text for count, text in told if count]

    def _whole(self) -> Iterator[tuple[Documents, Plan]]:
        """Documents that have one piece at most, with their plans."""
        for split, plans in ((self.corpus.train, self.plans), (self.corpus.validation, self.validation_plans)):
            for documents, plan in zip(split, plans, strict=True):
                if self.examples.keeps_whole(documents):
                    yield documents, plan

    def batch(self, k: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows of batch k with these numbers, or all; a host reads only its own."""
        return self.fill([self._training_row(n) for n in self._numbers(k, rows)])

    def documents(self, k: int, rows: Sequence[int] | None = None) -> list[str]:
        """The names of the documents in batch k, in the order in which they come.

        Where the run has several sources a name begins with that of its own: `data/a.jsonl: a.jsonl:7`.
        """
        names: dict[str, None] = {}
        for number in (int(self._rows[n]) for n in self._numbers(k, rows)):
            documents, plan, row = self._place(number)
            source = self._sources[self.corpus.tasks[self._task(number)].source]
            prefix = f"{source.path or source.kind}: " if len(self._sources) > 1 else ""
            for start, length in plan.row(row):
                ends = [start, start + length + self.examples.beyond - 1]
                first, last = np.searchsorted(documents.starts, ends, side="right") - 1
                names |= dict.fromkeys(prefix + documents.name(d) for d in range(first, last + 1))
        return list(names)

    def validation_batches(self, batch_size: int, rows: Sequence[int] | None = None, first: int = 0) -> Iterator[Batch]:
        """All held-out pieces once, in a fixed order and with fixed noise, whatever the seed and the batch size; or
        from batch `first` on.

        Each task's rows are in random order and spread over all, so that the first batches are a fair sample. The last
        batch is filled up with rows of weight 0.
        """
        return self._held_out_batches(range(first * batch_size, len(self._held_out)), batch_size, rows)

    def task_batches(self, task: int, most: int, batch_size: int, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """The same of the first held-out rows of a task, at most so many."""
        own = np.flatnonzero(self._held_out[:, 0] == task)[:most]
        return self._held_out_batches(own.tolist(), batch_size, rows)

    def _held_out_batches(self, numbers: Sequence[int], batch_size: int, rows: Sequence[int] | None) -> Iterator[Batch]:
        for first in range(0, len(numbers), batch_size):
            places = [first + b for b in (range(batch_size) if rows is None else rows)]
            yield self.fill([self._held_out_row(numbers[n]) if n < len(numbers) else None for n in places])

    def _held_out_row(self, number: int) -> "RowPlace":
        task, row = self._held_out[number].tolist()
        return RowPlace(task, self.corpus.validation[task], self.validation_plans[task], row, (HELD_OUT, number), 1.0)

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

    def _task(self, row: int) -> int:
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def _place(self, row: int) -> tuple[Documents, Plan, int]:
        task = self._task(row)
        return self.corpus.train[task], self.plans[task], row - int(self._first_rows[task])

    def _training_row(self, number: int) -> "RowPlace":
        row = int(self._rows[number])
        task = self._task(row)
        weight = self._sources[self.corpus.tasks[task].source].loss_weight
        return RowPlace(task, *self._place(row), (TRAINING, self._seed, number), weight)

    def first_rows(self, most: int, held_out: bool, task: int | None = None) -> "list[RowPlace]":
        """So many of the rows that are trained on first, or held out; of a task, or as they come."""
        if held_out:
            numbers = range(len(self._held_out)) if task is None else np.flatnonzero(self._held_out[:, 0] == task)
            return [self._held_out_row(int(n)) for n in numbers[:most]]
        if task is None:
            return [self._training_row(n) for n in range(most)]
        weight = self._sources[self.corpus.tasks[task].source].loss_weight
        place = task, self.corpus.train[task], self.plans[task]
        rows = range(min(most, len(self.plans[task])))
        return [RowPlace(*place, n, (TRAINING, self._seed, n), weight) for n in rows]

    def fill(self, rows: "Sequence[RowPlace | None]") -> Batch:
        """A batch of rows; none is an empty one."""
        batch = self.examples.empty(len(rows))
        for b, row in enumerate(rows):
            if row is None:
                continue
            spans = [slice(start, start + n + self.examples.beyond) for start, n in row.plan.row(row.number)]
            tokens, trained = row.documents.tokens, row.documents.trained
            pieces = Pieces(
                tokens=np.concatenate([tokens[span] for span in spans], dtype=np.int32),
                lengths=np.array([span.stop - span.start for span in spans]),
                trained=None if trained is None else np.concatenate([trained[span] for span in spans]),
            )
            use, *numbers = row.noise
            for name, x in self.examples.row(pieces, partial(_noise, use, *numbers)).items():
                batch[name][b, : len(x)] = x
            batch["weights"][b] *= row.weight
            if self._by_conversation and use == TRAINING:
                batch["weights"][b] = _shared(batch["weights"][b], batch["segments"][b])
        return batch


class RowPlace(NamedTuple):
    """A row that is to be made."""

    task: int
    documents: Documents
    plan: Plan
    number: int
    """In the plan."""
    noise: tuple[int, ...]
    """Numbers that its noise follows from."""
    weight: float
    """Multiplies its weights."""


def _shared(weights: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """`weights` of a row, over the number of tokens of their segment that have one."""
    counts = np.bincount(segments[weights > 0], minlength=segments.max() + 1)
    return weights / np.maximum(counts, 1)[segments].astype(np.float32)


def _mixed(rows: Sequence[int]) -> np.ndarray:
    """(task, row of it) of all rows, int64 [all rows, 2], those of each task in order and spread evenly over all.

    Where the first of a task stands is random, so that small tasks are not all in one place.
    """
    offsets = np.random.default_rng(0).random(len(rows))
    task = np.repeat(np.arange(len(rows)), rows)
    row = np.concatenate([np.arange(n) for n in rows]).astype(np.int64)
    order = np.argsort((row + offsets[task]) / np.array(rows)[task], kind="stable")
    return np.stack([task, row], axis=1)[order]


def make_examples(
    objective: ObjectiveConfig, corpus: Corpus, data: DataConfig, start_token: int | None, virtual: range
) -> Examples:
    """The examples of an objective.

    Args:
        objective: of the run.
        corpus: has the tokenizer.
        data: says how long rows are, how they are packed, and whether sources give pairs.
        start_token: what the decoder of an encoder-decoder reads first in each piece; the padding, if none.
        virtual: the ids of virtual tokens that each piece begins with, where the next token is told.

    Raises:
        UserError: the tokenizer does not have the tokens that the objective needs, or rows are too short for it.
    """
    if objective.kind in ("causal", "prefix"):
        return NextToken(objective, corpus, data, virtual)
    if objective.kind == "sft":
        return Supervised(objective, corpus, data, virtual)
    if objective.kind == "masked":
        return Masked(objective, corpus, data)
    start_token = corpus.tokenizer.pad_id if start_token is None else start_token
    return (Translated if objective.kind == "seq2seq" else Denoised)(objective, corpus, data, start_token)


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
