"""One reading of all sources: which documents are kept, which are held out, which train the tokenizer."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllm.config import UserError
from jaxllm.data.document import Document, Source
from jaxllm.data.progress import track


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
    duplicates: int
    """Documents dropped because an earlier one, of any source, has the same text (and target)."""
    empty: int
    """Documents dropped because they have no text; pairs, because they have no target."""


def survey(sources: Sequence[Source], validation_fraction: float, progress: bool = False) -> Survey:
    """Reads every document once; `progress` shows a bar.

    A document is held out if the hash of its name, as a number from 0 to 1, is below `validation_fraction`; that of
    its text, where the name is only its place. Adding, removing or reordering documents therefore moves no other
    across the split, but for a text of which there was one and then are several: of equal texts the first is kept, on
    the side that the hash of the text says. If one side would be empty, it is given the document whose hash is nearest
    to it.

    Raises:
        UserError: no document, or only one where some must be held out; or a document that cannot be read.
    """
    source, index, size, share = array("i"), array("q"), array("q"), array("d")
    kept: dict[bytes, int] = {}
    duplicates = empty = 0
    for s, documents in enumerate(sources):
        for i in track(range(len(documents)), len(documents), "Reading", progress):
            document = documents[i]
            parts = [part.encode() for part in document.parts]
            digest = hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()  # no text holds a NUL
            if not parts[-1]:
                empty += 1
                continue
            if digest in kept:
                duplicates += 1
                share[kept[digest]] = share_of(document.text)
            else:
                kept[digest] = len(size)
                source.append(s)
                index.append(i)
                size.append(sum(map(len, parts)))
                share.append(share_of(document.text if document.named_by_place else document.name))
    if not size:
        raise UserError(f"the data is empty: the sources hold no text ({empty} empty documents)")
    return Survey(
        source=np.frombuffer(source, np.int32),
        index=np.frombuffer(index, np.int64),
        size=np.frombuffer(size, np.int64),
        held_out=_held_out(np.frombuffer(share), validation_fraction),
        duplicates=duplicates,
        empty=empty,
    )


def share_of(text: str) -> float:
    """The hash of a text or a name as a number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def _held_out(share: np.ndarray, fraction: float) -> np.ndarray:
    held_out = share < fraction
    if fraction > 0:
        if len(share) < 2:
            raise UserError(
                "the data is one document, of which none can be held out; set data.validation_fraction to 0"
            )
        held_out[np.argmin(share)] = True
        held_out[np.argmax(share)] = False
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
    """(source, held out, document) of each kept document."""
    for s, i, held_out in zip(found.source.tolist(), found.index.tolist(), found.held_out.tolist(), strict=True):
        yield s, held_out, sources[s][i]
