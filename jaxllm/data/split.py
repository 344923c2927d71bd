"""Which documents are held out: by a hash of what each is known by, a share of each task, and groups as a whole."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxllm.config import DataConfig, UserError
from jaxllm.data.document import Document


@dataclass(frozen=True)
class Split:
    """What decides which documents are held out."""

    fraction: float
    """The share of them."""
    tasks: Sequence[Sequence[str]] = ()
    """Of each source, tasks of which all are."""
    only: Sequence[Sequence[str]] = ()
    """Of each source, the tasks that are kept; those of all, if it is empty."""
    passage_words: int | None = None
    """Documents that share a passage of that many words are on the same side."""

    @classmethod
    def of(cls, data: DataConfig) -> "Split":
        """That of a configuration."""
        return cls(
            data.validation_fraction,
            [source.held_out_tasks for source in data.sources],
            [source.tasks for source in data.sources],
            data.passage_words,
        )

    def keeps(self, source: int, task: str | None) -> bool:
        """Whether documents of a task are read."""
        only = self.only[source] if self.only else ()
        return task is None or not only or task in only

    def is_whole(self, source: int, task: str | None) -> bool:
        """Whether all documents of a task are held out."""
        return source < len(self.tasks) and task in self.tasks[source]

    def check(self, there: Sequence[set[str]]) -> None:
        """
        Args:
            there: the tasks of each source.

        Raises:
            UserError: a name that no task of its source has.
        """
        for field, named in (("tasks", self.only), ("held_out_tasks", self.tasks)):
            for s, names in enumerate(named):
                for name in names:
                    if name not in there[s]:
                        near = difflib.get_close_matches(name, sorted(there[s]), n=3, cutoff=0.0)
                        raise UserError(
                            f"data.sources.{s}.{field}: there is no task {name!r}; the nearest are {', '.join(near)}"
                        )


def share_of(text: str) -> float:
    """The hash of a text or a name as a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def own_share(document: Document) -> float:
    """That of what a document is known by: its group, its name or, where that only tells its place, its text."""
    if document.group is not None:
        return share_of(document.group)
    return share_of(document.text if document.named_by_place else document.name)


def are_held_out(
    fraction: float,
    share: np.ndarray,
    whole: np.ndarray,
    pairs: np.ndarray,
    task: np.ndarray,
    names: Sequence[str] = (),
) -> np.ndarray:
    """Which documents are, bool [documents]: all or none of those that a chain of pairs, or of equal shares, connects.

    Where none of them has a task, they are if their number is below the fraction. The others are taken in the order of
    their numbers, if that brings the tasks nearer to the fraction of each. Half a group too few is not the same as half
    a group too many: how they weigh is drawn for each task, so that of all tasks together the fraction is held out.

    Args:
        fraction: of them.
        share: the number of each in [0, 1), float64.
        whole: those that are held out in any case, bool.
        pairs: of documents that belong together, int [pairs, 2].
        task: of each, int; -1 for none.
        names: of the tasks.

    Raises:
        UserError: one side would be empty.
    """
    _, first, same = np.unique(share, return_index=True, return_inverse=True)
    twins = np.flatnonzero(first[same] != np.arange(len(share)))
    pairs = np.concatenate([pairs, np.stack([first[same[twins]], twins], axis=1)])
    group, share, whole = _together(share, whole, pairs)
    if whole.all():
        raise UserError(
            "the tasks in data.sources.N.held_out_tasks, and what belongs together with them, are all that there is: "
            "leave something to train on"
        )
    of_a_task = np.bincount(group, task >= 0)[group] > 0
    chosen = whole | ((share < fraction) & ~of_a_task)
    if fraction > 0:
        chosen |= _of_tasks(fraction, share, chosen, group, task, [share_of(f"task {name}") for name in names])
        if (share == share[0]).all():
            raise UserError(
                "the data is one document, or one group of them, of which none can be held out; set "
                "data.validation_fraction to 0"
            )
        if not chosen.any():
            chosen = share == share.min()
        if chosen.all():
            chosen = whole | (share < share[~whole].max())
    return chosen


def _of_tasks(
    fraction: float, share: np.ndarray, already: np.ndarray, group: np.ndarray, task: np.ndarray, weight: list[float]
) -> np.ndarray:
    """Which documents are held out beside those that are already, so that of each task some fraction is.

    A document too many costs the `weight` of its task, and one too few what is left of 1. Of a task whose groups are
    all of n documents and that lacks d, a group is then held out by a chance of d / n.
    """
    named = np.flatnonzero(task >= 0)
    missing = (fraction * np.bincount(task[named]) - np.bincount(task[named], already[named])).tolist()
    ones = np.ones(len(named), np.int64)
    counts = coo_array((ones, (group[named], task[named])), shape=(len(share), len(missing))).tocsr()

    def cost(t: int, missing: float) -> float:
        return (1 - weight[t]) * missing if missing > 0 else -weight[t] * missing

    chosen = np.zeros(len(share), bool)
    order = named[np.argsort(share[named], kind="stable")]
    for g in dict.fromkeys(group[order[~already[order]]].tolist()):
        own = slice(counts.indptr[g], counts.indptr[g + 1])
        rows = list(zip(counts.indices[own].tolist(), counts.data[own].tolist(), strict=True))
        if sum(cost(t, missing[t] - n) - cost(t, missing[t]) for t, n in rows) < 0:
            chosen[g] = True
            for t, n in rows:
                missing[t] -= n
    return chosen[group]


def _together(share: np.ndarray, whole: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The group of each document, int, and what decides for it, where it is the same for all that belong together.

    That is the number that all have, or else one that is made of the least.
    """
    count = len(share)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups, group = connected_components(graph, directed=False)
    any_whole, least, most = np.zeros(groups, bool), np.ones(groups), np.zeros(groups)
    np.logical_or.at(any_whole, group, whole)
    np.minimum.at(least, group, share)
    np.maximum.at(most, group, share)
    for g in np.flatnonzero(least < most).tolist():
        least[g] = share_of(str(least[g]))
    return group, least[group], any_whole[group]
