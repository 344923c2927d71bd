"""What a model reads and is to tell of the pieces of a row, for objectives that hide tokens or translate.

Those that tell the next token are in `next_token.py`. Each kind of `Examples` plans rows from documents, and makes the
arrays of one row from its pieces and a random stream of its own. No text is lost: a document longer than a row is cut
into pieces, and all lengths are known before the noise is drawn. Only a pair of texts, which cannot be cut, is left out
where a row does not hold it; and of a conversation no more is kept than a row holds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxllm.common.corrupted import corrupted_lengths, longest_piece, target_length
from jaxllm.config import PUBLISHED_NOISE, DataConfig, ObjectiveConfig, UserError, to_dict
from jaxllm.data.corpus import Corpus
from jaxllm.data.corruption import corrupt_spans, infill, mask
from jaxllm.data.packing import Plan, arranged, pieces
from jaxllm.data.token_files import Documents

LEFT_OUT = 0.01
"""The most of the pairs that may be too long for a row."""

Noise = Callable[[], np.random.Generator]
"""Makes the random stream of a row, for those that need one: it takes as long as a whole row of `causal` does."""

Row = dict[str, np.ndarray]
"""The arrays of a batch, without their first axis and without padding."""


class Pieces(NamedTuple):
    """What a row is made of."""

    tokens: np.ndarray
    """int32, of all its pieces, each with what is `beyond` it."""
    lengths: np.ndarray
    """int [pieces]: of each in `tokens`."""
    trained: np.ndarray | None
    """bool, of each token whether the model is to write it; none where that is all."""


class Examples(ABC):
    """An objective, with what it needs of the tokenizer and the packing."""

    read: int
    """Places of a row of the encoder, or of the only one."""
    written: int = 0
    """Places of a row of the decoder, where there is an encoder too."""
    beyond: int = 0
    """Tokens after each piece that belong to it too."""

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig):
        self.objective, self.packing, self.read = objective, data.packing, data.sequence_length
        self.tokenizer, self._tokenizer_path = corpus.tokenizer, corpus.tokenizer_path
        # Where the vocabulary has no token of its own that begins a text, an end is all that is put to it.
        self.begin = [self.tokenizer.bos_id] * (self.tokenizer.bos_id != self.tokenizer.eos_id)

    @property
    def key(self) -> list[Any]:
        """What a plan follows from, besides the documents."""
        return [self.read, self.packing, type(self).__name__, self.written, to_dict(self.objective)]

    @abstractmethod
    def plan(self, documents: Documents) -> Plan:
        """The rows that hold all of `documents`, but for pairs that are too long.

        Raises:
            UserError: more than a few of the pairs are.
        """

    def keeps_whole(self, documents: Documents) -> bool:
        """Whether a piece is all that a row holds of a document: a pair of texts, or a conversation."""
        return False

    @abstractmethod
    def filled(self, plan: Plan) -> int:
        """Places that the rows of `plan` fill, of encoder and decoder together."""

    @abstractmethod
    def row(self, pieces: Pieces, noise: Noise) -> Row:
        """The arrays of a row, given its pieces and its random stream."""

    def empty(self, rows: int) -> Row:
        """A batch of padding."""
        shape, pad = (rows, self.written or self.read), self.tokenizer.pad_id
        batch = {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
        batch |= {name: np.full(shape, pad, np.int32) for name in ("tokens", "targets")}
        batch["weights"] = np.zeros(shape, np.float32)
        if self.objective.kind == "prefix":
            batch["prefix"] = np.zeros(shape, bool)
        if self.written:
            batch |= {f"encoder_{name}": np.zeros((rows, self.read), np.int32) for name in ("segments", "positions")}
            batch["encoder_tokens"] = np.full((rows, self.read), pad, np.int32)
        return batch

    def text_pieces(self, documents: Documents, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of pieces of text, of at most so many tokens.

        In `documents`, of the text between begin and end of each; in `concatenate`, of the stream, with both.
        """
        if self.packing == "concatenate":
            return pieces(documents.starts[:1], np.diff(documents.starts[[0, -1]]), most)
        return pieces(documents.starts[:-1] + 1, np.diff(documents.starts) - 2, most)

    def text(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces without the begins and ends of documents, which only `concatenate` leaves in them."""
        if self.packing != "concatenate":
            return tokens, lengths
        inner = (tokens != self.tokenizer.bos_id) & (tokens != self.tokenizer.eos_id)
        piece = np.repeat(np.arange(len(lengths)), lengths)
        return tokens[inner], np.bincount(piece[inner], minlength=len(lengths))

    def needed(self, wanted: str, ids: Iterable[int | None]) -> list[int]:
        """The ids, all of which there must be.

        Raises:
            UserError: the vocabulary does not have one.
        """
        found = [*ids]
        if None in found:
            raise UserError(
                f"objective.kind = {self.objective.kind!r} needs {wanted}, which the tokenizer "
                f"'{self._tokenizer_path}' does not have; a trained one has those that tokenizer.extra_tokens names"
            )
        return [i for i in found if i is not None]


class Masked(Examples):
    """The tokens that are hidden among those that are seen on both sides (BERT, 1810.04805)."""

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig):
        super().__init__(objective, corpus, data)
        self._noise = PUBLISHED_NOISE["masked"] if objective.noise is None else objective.noise
        (self._mask_id,) = self.needed("<mask> or [MASK]", [self.tokenizer.mask_id])
        self._most = self.read - len(self.begin) - 1
        if self._most < 1:
            raise UserError(f"data.sequence_length = {self.read}: a row has a begin, text and an end; 3 would do")
        self._is_text = np.ones(self.tokenizer.vocab_size, bool)
        self._is_text[sorted(self.tokenizer.special_ids())] = False
        self._ordinary = np.flatnonzero(self._is_text)
        starts = self.tokenizer.word_starts() if objective.whole_words else [True] * self.tokenizer.vocab_size
        if starts is None:
            raise UserError(
                f"objective.whole_words = True: the tokenizer '{self._tokenizer_path}' does not tell where words "
                "begin; False would do"
            )
        self._begins_word = np.array(starts)

    def plan(self, documents: Documents) -> Plan:
        starts, lengths = self.text_pieces(documents, self._most)
        return arranged(starts, lengths, lengths + len(self.begin) + 1, self.read)

    def filled(self, plan: Plan) -> int:
        return plan.pairs + (len(self.begin) + 1) * len(plan.lengths)

    def row(self, pieces: Pieces, noise: Noise) -> Row:
        targets, sizes = _framed(*self.text(*pieces[:2]), self.begin, self.tokenizer.eos_id)
        row = laid(sizes)
        words = np.cumsum(self._begins_word[targets] | (row["positions"] <= len(self.begin))) - 1
        is_text = self._is_text[targets]
        seen, told = mask(noise(), targets, words, is_text, self._noise, self._mask_id, self._ordinary)
        return row | {"tokens": seen, "targets": targets, "weights": told}


class Denoised(Examples):
    """The spans that are hidden in a text (T5, 1910.10683), or all of that text (BART, 1910.13461)."""

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig, start_token: int):
        super().__init__(objective, corpus, data)
        self._start_token, self.written = start_token, target_length(objective, self.read)
        most = longest_piece(objective, self.read, self.written, len(self.begin))
        if most < 2:
            raise UserError(
                f"data.sequence_length = {self.read}, with {self.written} places in a row of the decoder: does not "
                "hold two tokens of which one is hidden; larger ones would do"
            )
        self._lengths = np.array([corrupted_lengths(objective, n, len(self.begin)) for n in range(most + 1)])
        if objective.kind == "infilling":
            (self._mask_id,) = self.needed("<mask> or [MASK]", [self.tokenizer.mask_id])
        else:
            names = [f"<extra_id_{i}>" for i in range(self._lengths[-1, 1])]
            wanted = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
            self._sentinels = np.array(self.needed(wanted, map(self.tokenizer.token_id, names)))

    def plan(self, documents: Documents) -> Plan:
        starts, lengths = self.text_pieces(documents, len(self._lengths) - 1)
        return arranged(starts, lengths, self._lengths[lengths, 2:], (self.read, self.written))

    def filled(self, plan: Plan) -> int:
        return int(self._lengths[plan.lengths, 2:].sum())

    def row(self, pieces: Pieces, noise: Noise) -> Row:
        tokens, lengths = self.text(*pieces[:2])
        hidden, spans, read, written = self._lengths[lengths].T
        if self.objective.kind == "infilling":
            inputs, targets = infill(noise(), tokens, lengths, hidden, spans, self._mask_id), tokens
        else:
            inputs, targets = corrupt_spans(noise(), tokens, lengths, hidden, spans, self._sentinels)
        inputs, _ = _framed(inputs, read - len(self.begin) - 1, self.begin, self.tokenizer.eos_id)
        targets, _ = _framed(targets, written - 1, [], self.tokenizer.eos_id)
        return _two_sides(inputs, read, targets, written, self._start_token)


class Translated(Examples):
    """The second text of a pair from the first."""

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig, start_token: int):
        super().__init__(objective, corpus, data)
        self._start_token, self.written = start_token, target_length(objective, self.read)

    def keeps_whole(self, documents: Documents) -> bool:
        return True

    def plan(self, documents: Documents) -> Plan:
        ends = documents.span.start + np.flatnonzero(documents.tokens[documents.span] == self.tokenizer.eos_id)
        firsts = ends.reshape(len(documents), -1)[:, -2] if len(documents) else ends
        starts, stops = documents.starts[:-1], documents.starts[1:]
        sizes = np.stack([firsts - starts + len(self.begin), stops - 1 - firsts], axis=1)
        room = {"data.sequence_length": self.read, "objective.target_length": self.written}
        return plan_whole(starts, stops - starts, sizes, room)

    def filled(self, plan: Plan) -> int:
        return plan.pairs - (1 - len(self.begin)) * len(plan.lengths)

    def row(self, pieces: Pieces, noise: Noise) -> Row:
        tokens, lengths, _ = pieces
        starts = np.cumsum(lengths) - lengths
        read = first_ends(tokens, starts, self.tokenizer.eos_id) - starts + 1
        is_read = np.arange(len(tokens)) < np.repeat(starts + read, lengths)
        targets, written = tokens[~is_read], lengths - read
        if not self.begin:
            is_read[starts], read = False, read - 1
        return _two_sides(tokens[is_read], read, targets, written, self._start_token)


def plan_whole(starts: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, room: dict[str, int]) -> Plan:
    """Pairs that are not cut, without those whose sizes are more than the fields of `room` say."""
    fits = np.all(sizes <= list(room.values()), axis=1)
    too_long = len(fits) - int(fits.sum())
    if too_long > LEFT_OUT * len(fits):
        asked = " and ".join(f"{field} = {places}" for field, places in room.items())
        needed = " and ".join(f"{field} = {most}" for field, most in zip(room, sizes.max(axis=0), strict=True))
        raise UserError(
            f"{asked}: too short for {too_long:,} of {len(fits):,} pairs, which cannot be cut, and more than "
            f"{LEFT_OUT:.0%} of them may not be left out; {needed} would do for all"
        )
    return arranged(starts[fits], lengths[fits], sizes[fits], tuple(room.values()))


def first_ends(tokens: np.ndarray, starts: np.ndarray, end: int) -> np.ndarray:
    """Where the first text of each pair ends; what begins it may be the same token."""
    ends = np.flatnonzero(tokens == end)
    return ends[np.searchsorted(ends, starts + 1)]


def _framed(tokens: np.ndarray, lengths: np.ndarray, begin: list[int], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces, each with its begin and its end; and their lengths."""
    sizes = lengths + len(begin) + 1
    stops, text = np.cumsum(sizes), np.cumsum(lengths)
    framed = np.empty(sizes.sum(), np.int32)
    framed[np.arange(len(tokens)) + np.repeat(stops - sizes + len(begin) - (text - lengths), lengths)] = tokens
    if begin:
        framed[stops - sizes] = begin[0]
    framed[stops - 1] = end
    return framed, sizes


def laid(lengths: np.ndarray) -> Row:
    """Which piece each place is of, from 1, and where in it, from 0."""
    starts = np.cumsum(lengths) - lengths
    pieces = np.arange(1, len(lengths) + 1)
    return {
        "segments": np.repeat(pieces, lengths),
        "positions": np.arange(lengths.sum()) - np.repeat(starts, lengths),
    }


def _two_sides(read: np.ndarray, reads: np.ndarray, targets: np.ndarray, writes: np.ndarray, start_token: int) -> Row:
    """The arrays of an encoder-decoder, given the tokens of each side and their numbers in each piece."""
    tokens = np.roll(targets, 1)
    tokens[np.cumsum(writes) - writes] = start_token
    encoder = {"tokens": read, **laid(reads)}
    decoder = {"tokens": tokens, "targets": targets, "weights": np.ones(len(targets), np.float32), **laid(writes)}
    return decoder | {f"encoder_{name}": x for name, x in encoder.items()}
