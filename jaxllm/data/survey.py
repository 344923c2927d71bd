"""One reading of all sources: which documents are kept, which are held out, which train the tokenizer."""

import difflib
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.config import DataConfig, UserError
from jaxllm.data.document import BadRow, Document, Source
from jaxllm.data.passages import passages, sharing
from jaxllm.data.progress import track

NAMED = 5
"""Bad documents that a message names."""


@dataclass(frozen=True)
class BadRows:
    """Lines, rows and files that are no document."""

    count: int = 0
    of: int = 0
    """All that were read."""
    first: tuple[str, ...] = ()
    """What is wrong with the first of them."""

    def refuse(self) -> None:
        """Passes where there are none.

        Raises:
            UserError: with what is wrong.
        """
        if self.count:
            more = [f"and {self.count - len(self.first):,} more"] * (self.count > len(self.first))
            raise UserError(
                "\n  ".join([f"{self.count:,} of {self.of:,} documents cannot be used:", *self.first, *more])
                + "\nmend them or take them out, or leave them out by --skip-bad"
            )

    def joined(self, reason: str) -> "BadRows":
        """With one more of them."""
        return BadRows(self.count + 1, self.of, (*self.first, reason)[:NAMED])


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
    """Documents that share a passage of that many words, and the answer, are on the same side."""

    @classmethod
    def of(cls, data: DataConfig) -> "Split":
        """That of a configuration."""
        held_out, kept = zip(*((source.held_out_tasks, source.tasks) for source in data.sources), strict=True)
        return cls(data.validation_fraction, held_out, kept, data.passage_words)


@dataclass(frozen=True)
class Survey:
    """The kept documents, ordered by source and then by place in it, as arrays of one entry each."""

    source: np.ndarray
    """Which source, int32 [documents]."""
    index: np.ndarray
    """The place in the source, int64 [documents]."""
    size: np.ndarray
    """Bytes of UTF-8, int64 [documents]."""
    held_out: np.ndarray
    """In the validation split, bool [documents]."""
    task: np.ndarray
    """Of which task, int32 [documents]: its place in `tasks`."""
    tasks: list[tuple[int, str | None]]
    """(source, name) of each task, ordered by source and then by first document; the name is none where documents do
    not say it."""
    duplicates: int
    """Documents dropped because an earlier one, of any source, has the same text (and target)."""
    empty: int
    """Documents dropped because they have no text; pairs and conversations, because they have no target."""
    bad: BadRows
    """Rows dropped because they are no document."""


def survey(sources: Sequence[Source], split: Split, *, skip_bad: bool = False, progress: bool = False) -> Survey:
    """Reads every document once; `progress` shows a bar.

    A document is held out if the hash of its name, as a number from 0 to 1, is below `split.fraction`; that of
    its text, where the name is only its place; that of its group, if it has one. Adding, removing or reordering
    documents therefore moves no other across the split, but for a text of which there was one and then are several: of
    equal texts the first is kept, on the side that the hash of the text (or of the first one's group) says. If one side
    would be empty, it is given the document whose hash is nearest to it. Of the tasks that `split` names all documents
    are held out. With `split.passage_words` one hash decides for all documents that share passages, and if one of them
    is of such a task, all are held out; a new document can then move those that it shares passages with.

    Raises:
        UserError: no document, or only one where some must be held out; no task of a name that `split` has; a source
            that cannot be read; or rows that are no document, if they are not to be skipped.
    """
    source, index, size, share, task = array("i"), array("q"), array("q"), array("d"), array("i")
    tasks: dict[tuple[int, str | None], int] = {}
    there: list[set[str]] = [set() for _ in sources]
    only = split.only or [()] * len(sources)
    kept: dict[bytes, int] = {}
    passages_of: list[np.ndarray] = []
    duplicates = empty = 0
    bad = BadRows(of=sum(map(len, sources)))
    for s, documents in enumerate(sources):
        for i in track(range(len(documents)), len(documents), "Reading", progress):
            try:
                document = documents[i]
            except BadRow as error:
                bad = bad.joined(str(error))
                continue
            if document.task is not None:
                there[s].add(document.task)
                if only[s] and document.task not in only[s]:
                    continue
            if not document.parts[-1]:
                empty += 1
                continue
            digest = hashlib.blake2b(document.content, digest_size=16).digest()
            if digest in kept:
                duplicates += 1
                if document.group is None:
                    share[kept[digest]] = share_of(document.text)
            else:
                kept[digest] = len(size)
                source.append(s)
                index.append(i)
                size.append(sum(len(part.encode()) for part in document.parts))
                share.append(share_of(_decides(document)))
                if split.passage_words is not None:
                    passages_of.append(passages(document.text, document.answer, split.passage_words))
                task.append(tasks.setdefault((s, document.task), len(tasks)))
    if not skip_bad:
        bad.refuse()
    _check_names("tasks", split.only, there)
    _check_names("held_out_tasks", split.tasks, there)
    if not size:
        left_out = f"{empty} empty documents" + (f", {bad.count} bad ones" if bad.count else "")
        raise UserError(f"the data is empty: the sources hold no text ({left_out})")
    whole = np.array([s < len(split.tasks) and name in split.tasks[s] for s, name in tasks])
    is_whole, shares = whole[np.frombuffer(task, np.int32)], np.frombuffer(share)
    if split.passage_words is not None:
        is_whole, shares = _together(sharing(passages_of), is_whole, shares)
    return Survey(
        source=np.frombuffer(source, np.int32),
        index=np.frombuffer(index, np.int64),
        size=np.frombuffer(size, np.int64),
        held_out=_held_out(shares, split.fraction, is_whole),
        task=np.frombuffer(task, np.int32),
        tasks=list(tasks),
        duplicates=duplicates,
        empty=empty,
        bad=bad,
    )


def _decides(document: Document) -> str:
    if document.group is not None:
        return document.group
    return document.text if document.named_by_place else document.name


def share_of(text: str) -> float:
    """The hash of a text or a name as a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def _check_names(field: str, named: Sequence[Sequence[str]], there: Sequence[set[str]]) -> None:
    """
    Raises:
        UserError: a name that no task of its source has.
    """
    for s, names in enumerate(named):
        for name in names:
            if name not in there[s]:
                near = difflib.get_close_matches(name, sorted(there[s]), n=3, cutoff=0.0)
                raise UserError(
                    f"data.sources.{s}.{field}: there is no task {name!r}; the nearest are {', '.join(near)}"
                )


def _together(group: np.ndarray, whole: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What decides for each document, where it is the same for all of a group: whether they are held out in any case,
    and a hash, made of the least one of them.
    """
    held_out, least = np.zeros(group.max() + 1, bool), np.ones(group.max() + 1)
    np.logical_or.at(held_out, group, whole)
    np.minimum.at(least, group, share)
    of_group = np.where(np.bincount(group) > 1, [share_of(str(number)) for number in least.tolist()], least)
    return held_out[group], of_group[group]


def _held_out(share: np.ndarray, fraction: float, whole: np.ndarray) -> np.ndarray:
    """
    Args:
        share: the hash of each document.
        fraction: of them.
        whole: those that are held out in any case.
    """
    if whole.all():
        raise UserError("the tasks in data.sources.N.held_out_tasks are all that there are: leave one to train on")
    held_out = (share < fraction) | whole
    if fraction > 0:
        if len(share) < 2:
            raise UserError(
                "the data is one document, of which none can be held out; set data.validation_fraction to 0"
            )
        if not held_out.any():
            held_out[np.argmin(share)] = True
        if held_out.all():
            held_out[np.argmax(np.where(whole, -1.0, share))] = False
    return held_out


def sample(sources: Sequence[Source], found: Survey, megabytes: float, held_out: bool = False) -> Iterator[str]:
    """Text of randomly chosen documents of one split, `megabytes` (10^6 bytes) in all, in their order."""
    budget = int(megabytes * 1e6)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(found.held_out == held_out))
    before = np.cumsum(found.size[chosen]) - found.size[chosen]
    wanted = {int(d): budget - int(b) for d, b in zip(chosen, before, strict=True) if b < budget}
    for d in sorted(wanted):
        text = "".join(sources[found.source[d]][int(found.index[d])].parts)
        yield text if found.size[d] <= wanted[d] else text.encode()[: wanted[d]].decode(errors="ignore")


def kept_documents(sources: Sequence[Source], found: Survey) -> Iterator[tuple[int, bool, Document]]:
    """(task, held out, document) of each kept document."""
    kept = zip(*(x.tolist() for x in (found.source, found.index, found.task, found.held_out)), strict=True)
    for s, i, task, held_out in kept:
        yield task, held_out, sources[s][i]
