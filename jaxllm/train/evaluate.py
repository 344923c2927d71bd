"""Loss on held-out text."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, pairwise, takewhile
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import Mesh

from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig
from jaxllm.data.loader import Batch, Loader
from jaxllm.objectives.token_loss import token_loss
from jaxllm.sharding.placement import own_rows, place
from jaxllm.sharding.rules import BATCH
from jaxllm.train.report import duration
from jaxllm.train.step import make_model

Part = TypeVar("Part")

SAID_EVERY = 30.0
"""Seconds between lines that tell how far a long evaluation is."""


class HeldOut(NamedTuple):
    """A sum over held-out tokens."""

    nats: float
    tokens: int
    bytes: float | None
    """Of UTF-8; for a part of the held-out set, its share of the tokens of all its bytes. None where the tokens are
    not those of a text, each predicted once."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.bytes is None else self.nats / math.log(2) / self.bytes

    def joined(self, other: "HeldOut") -> "HeldOut":
        """Both together."""
        known = self.bytes is not None and other.bytes is not None
        together = self.bytes + other.bytes if known else None  # type: ignore[operator]
        return HeldOut(self.nats + other.nats, self.tokens + other.tokens, together)

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """As a line of metrics."""
        names = ("loss", "perplexity", "bits_per_byte", "tokens")
        return {f"{prefix}_{name}": getattr(self, name) for name in names}


class Evaluator:
    """Evaluates parameters on the loader's held-out rows, without dropout and in the run's compute type."""

    def __init__(
        self,
        config: RunConfig,
        loader: Loader,
        mesh: Mesh,
        stop: Callable[[], bool],
        say: Callable[[str], None],
    ):
        """
        Args:
            config: the run.
            loader: has the held-out rows.
            mesh: where batches are put; each process makes the rows of its own devices.
            stop: is asked before each batch whether to leave it.
            say: is told every half a minute how far a long evaluation is.
        """
        self._loader, self._mesh, self._stop, self._say = loader, mesh, stop, say
        self._pairs, self._is_text = loader.held_out_pairs, config.objective.kind == "causal"
        # As many rows as a microbatch has: what the training step has memory for, and what the mesh divides.
        self._rows = config.train.batch_size // config.train.accumulate
        self._cut = math.prod(mesh.shape[axis] for axis in BATCH[0])
        self._all = -(-loader.held_out_rows // self._rows)
        self._part = self._batches(config, config.eval.max_tokens)
        last = config.eval.last_tokens
        self._last = self._all if last is None else max(self._part, self._batches(config, last))
        self._task_rows, self._most_tokens = config.eval.task_rows, config.eval.max_tokens
        model, chunk = make_model(config), config.train.loss_chunk

        def sums(params: Tree, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            _, weight, metrics = token_loss(model, params, batch, None, chunk=chunk)
            return metrics["nll"], weight

        self._sums = jax.jit(sums)

    def _batches(self, config: RunConfig, tokens: int) -> int:
        return min(self._all, max(1, tokens // (self._rows * config.data.sequence_length)))

    @property
    def reads_all(self) -> bool:
        """Whether the last evaluation is of the whole held-out set."""
        return self._last == self._all

    def __call__(self, params: Tree) -> HeldOut | None:
        """The capped part of the held-out set, always the same; none where nothing is held out or it was stopped."""
        part = self._sum(params, self._read(0, self._part), self._rows)
        return part if part.tokens and not self._stop() else None

    def last(self, params: Tree, part: HeldOut) -> HeldOut | None:
        """All that the last evaluation reads, of which `part` is known; none when it was stopped."""
        batches = self._told(self._read(self._part, self._last), "the last evaluation", self._last - self._part)
        rest = self._sum(params, batches, self._rows)
        return None if self._stop() else part.joined(rest)

    def _read(self, first: int, stop: int) -> Iterator[Batch]:
        batches = self._loader.validation_batches(self._rows, own_rows(self._mesh, self._rows), first)
        return islice(batches, stop - first)

    def tasks(self, params: Tree) -> list[HeldOut | None] | None:
        """The first held-out rows of each task, always the same; none of a task that has no such row.

        None, when it was stopped.
        """
        tasks = len(self._loader.corpus.tasks)
        rows = max(1, min(self._task_rows, self._most_tokens // (tasks * self._loader.sequence_length)))
        found: list[HeldOut | None] = []
        few = min(self._rows, -(-rows // self._cut) * self._cut)  # no more than the mesh needs: most of them are empty
        for task in self._told(range(tasks), "the loss of each task", tasks):
            result = self._sum(params, self._loader.task_batches(task, rows, few, own_rows(self._mesh, few)), few)
            found.append(result if result.tokens else None)
        return None if self._stop() else found

    def _told(self, parts: Iterable[Part], what: str, total: int) -> Iterator[Part]:
        """The same, while it is said how many of them are done."""
        began = said = time.monotonic()
        for done, part in enumerate(parts):
            now = time.monotonic()
            if done and now - said > SAID_EVERY:
                self._say(f"{what}: {done:,} of {total:,}, {duration((now - began) * (total / done - 1))} left")
                said = now
            yield part

    def _sum(self, params: Tree, batches: Iterable[Batch], rows: int) -> HeldOut:
        nats, tokens = 0.0, 0  # on the host: float32 would lose tokens of a large set
        placed = (place(b, self._mesh, rows) for b in takewhile(lambda _: not self._stop(), batches))
        running = (self._sums(params, batch) for batch in placed)
        for (nll, weight), _ in pairwise(chain(running, (None,))):  # one late: the device has work meanwhile
            nats, tokens = nats + float(nll), tokens + int(weight)
        whole = self._loader.corpus.held_out_bytes
        return HeldOut(nats, tokens, whole * tokens / max(1, self._pairs) if self._is_text else None)
