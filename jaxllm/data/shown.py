"""Rows of a run in words: what the model reads, and which tokens of it are trained."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.data.loader import Batch, Loader, RowPlace
from jaxllm.data.tokenizer import StreamDecoder, Tokenizer


class Run(NamedTuple):
    """Tokens that follow one another, as text."""

    text: str
    trained: bool
    special: bool


class Shown(NamedTuple):
    """A piece of a row."""

    name: str
    """Of the document, or of the first and the last of them."""
    place: str
    """Which part of it the piece is."""
    reads: list[Run]
    """What an encoder reads; empty where there is none."""
    text: list[Run]
    """What the model reads and writes."""


def shown(loader: Loader, row: RowPlace) -> Iterator[Shown]:
    """The pieces of a row."""
    batch = {name: x[0] for name, x in loader.fill([row]).items()}
    for number, (start, length) in enumerate(row.plan.row(row.number), 1):
        name, place = _place(row, start, length + loader.examples.beyond)
        reads, text = _tokens(batch, number, loader.examples.objective.kind)
        tokenizer = loader.corpus.tokenizer
        yield Shown(name, place, runs(tokenizer, reads, np.zeros(len(reads), bool)), runs(tokenizer, *text))


def _place(row: RowPlace, start: int, count: int) -> tuple[str, str]:
    documents, last = row.documents, start + count - 1
    first, stop = np.searchsorted(documents.starts, [start, last], side="right") - 1
    if first != stop:
        return f"{documents.name(int(first))} to {documents.name(int(stop))}", f"{count:,} tokens"
    begin, end = documents.starts[first : first + 2].tolist()
    # What begins or ends a document is not of it, for objectives other than conversations.
    before, after = (0, 1) if documents.trained is not None else (1, 2)
    if start - begin <= before and end - last <= after:
        return documents.name(int(first)), f"all of its {end - begin:,} tokens"
    part = f"tokens {start - begin + 1:,} to {last - begin + 1:,} of {end - begin:,}"
    return documents.name(int(first)), part + (", cut" if documents.trained is not None else "")


def _tokens(batch: Batch, segment: int, kind: str) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What an encoder reads of a segment; and what the model writes, or reads and is trained on, with which of it."""
    own = batch["segments"] == segment
    tokens, targets, trained = batch["tokens"][own], batch["targets"][own], batch["weights"][own] > 0
    if "encoder_tokens" in batch:
        return batch["encoder_tokens"][batch["encoder_segments"] == segment], (targets, trained)
    if kind == "masked":
        return tokens[:0], (tokens, trained)
    return tokens[:0], (np.append(tokens, targets[-1:]), np.append(False, trained))


def runs(tokenizer: Tokenizer, ids: np.ndarray, trained: np.ndarray) -> list[Run]:
    """The tokens as text, with special ones as they are spelled, in runs of which all are trained or none is."""
    special, decoder = tokenizer.special_ids(), StreamDecoder(tokenizer)
    found: list[Run] = []
    for i, is_trained in zip(ids.tolist(), trained.tolist(), strict=True):
        is_special = i in special
        text = decoder.finish() + (tokenizer.token_name(i) or f"<{i}>") if is_special else decoder.feed(i)
        if found and found[-1][1:] == (is_trained, is_special):
            found[-1] = Run(found[-1].text + text, is_trained, is_special)
        elif text:
            found.append(Run(text, is_trained, is_special))
    rest = decoder.finish()
    return [*found, Run(rest, bool(trained[-1]), False)] if rest else found


def bracketed(parts: Sequence[Run]) -> str:
    """The text with what is trained between ⟦ and ⟧."""
    text, inside = "", False
    for part in parts:
        if part.trained != inside:
            text, inside = text + ("⟦" if part.trained else "⟧"), part.trained
        text += part.text
    return text + "⟧" * inside
