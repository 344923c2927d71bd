"""One reading of all sources: which documents are kept, which are held out, which train the tokenizer."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.config import UserError
from jaxllm.data.document import BadRow, Document, Source
from jaxllm.data.passages import passages, sharing
from jaxllm.data.progress import track
from jaxllm.data.split import Split, are_held_out, own_share, share_of

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

    def followed_by(self, later: "BadRows") -> "BadRows":
        """With those that were found later among the same documents; the first of both are named."""
        return BadRows(self.count + later.count, self.of, (*self.first, *later.first))


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
    """Documents dropped because they have no text; pairs, because they have no target."""
    bad: BadRows
    """Rows dropped because they are no document."""


class _Kept:
    """The documents that are kept, one after another."""

    def __init__(self, split: Split):
        self._split = split
        self.source, self.index, self.size, self.task = array("i"), array("q"), array("q"), array("i")
        self.tasks: dict[tuple[int, str | None], int] = {}
        self.duplicates = 0
        self._share, self._whole, self._pairs = array("d"), array("b"), array("i")
        self._is_grouped: list[bool] = []
        self._of_content: dict[bytes, int] = {}
        self._of_group: dict[str, int] = {}
        self._passages: list[np.ndarray] = []

    def take(self, source: int, index: int, document: Document) -> None:
        """One more, or another copy of one: it then belongs to the groups, and is held out with the tasks, of both."""
        digest = hashlib.blake2b(document.content, digest_size=16).digest()
        place = self._of_content.setdefault(digest, len(self.size))
        is_whole = self._split.is_whole(source, document.task)
        if place < len(self.size):
            self.duplicates += 1
            self._whole[place] |= is_whole
            if not self._is_grouped[place]:
                self._share[place] = share_of(document.text)
        else:
            self.source.append(source)
            self.index.append(index)
            self.size.append(sum(len(part.encode()) for part in document.parts))
            self.task.append(self.tasks.setdefault((source, document.task), len(self.tasks)))
            self._share.append(own_share(document))
            self._whole.append(is_whole)
            self._is_grouped.append(document.group is not None)
            if self._split.passage_words is not None:
                self._passages.append(passages(document.text, self._split.passage_words))
        if document.group is not None:
            self._pairs.extend((self._of_group.setdefault(document.group, place), place))

    def held_out(self) -> np.ndarray:
        """Which of them are. Raises as `are_held_out` does."""
        pairs = np.frombuffer(self._pairs, np.int32).reshape(-1, 2)
        shared = np.concatenate([pairs, sharing(self._passages)])
        of_tasks = np.array([-1 if name is None else t for t, (_, name) in enumerate(self.tasks)])
        share, whole = np.frombuffer(self._share), np.frombuffer(self._whole, bool)
        task, names = of_tasks[np.frombuffer(self.task, np.int32)], [name or "" for _, name in self.tasks]
        return are_held_out(self._split.fraction, share, whole, shared, task, names)


def survey(sources: Sequence[Source], split: Split, *, skip_bad: bool = False, progress: bool = False) -> Survey:
    """Reads every document once; `progress` shows a bar.

    A document is held out if the hash of its name, as a number from 0 to 1, is below `split.fraction`; that of
    its text, where the name is only its place; that of its group, if it has one. Adding, removing or reordering
    documents therefore moves no other across the split, but for a text of which there was one and then are several: of
    equal texts the first is kept, on the side that the hash of the text (or of the first one's group) says. If one side
    would be empty, it is given what has the hash nearest to it. Of the tasks that `split` names all documents are held
    out, their copies in other tasks too. Of each other task that documents name about the fraction is held out, those
    of the least hashes: a new document can move those that are near the border. Documents of one group, and with
    `split.passage_words` all that share passages, are on one side: held out if one of them must be, or else as one hash
    for all of them says. A new document can then move those that it connects.

    Raises:
        UserError: no document, or only one where some must be held out; no task of a name that `split` has; a source
            that cannot be read; or rows that are no document, if they are not to be skipped.
    """
    kept, empty, bad = _Kept(split), 0, BadRows(of=sum(map(len, sources)))
    there: list[set[str]] = [set() for _ in sources]
    for s, documents in enumerate(sources):
        for i in track(range(len(documents)), len(documents), "Reading", progress):
            try:
                document = documents[i]
            except BadRow as error:
                bad = bad.joined(str(error))
                continue
            if document.task is not None:
                there[s].add(document.task)
            if not split.keeps(s, document.task):
                continue
            if document.parts[-1]:
                kept.take(s, i, document)
            else:
                empty += 1
    if not skip_bad:
        bad.refuse()
    split.check(there)
    if not kept.size:
        left_out = f"{empty} empty documents" + (f", {bad.count} bad ones, such as {bad.first[0]}" if bad.count else "")
        raise UserError(f"the data is empty: the sources hold no text ({left_out})")
    return Survey(
        source=np.frombuffer(kept.source, np.int32),
        index=np.frombuffer(kept.index, np.int64),
        size=np.frombuffer(kept.size, np.int64),
        held_out=kept.held_out(),
        task=np.frombuffer(kept.task, np.int32),
        tasks=list(kept.tasks),
        duplicates=kept.duplicates,
        empty=empty,
        bad=bad,
    )


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
