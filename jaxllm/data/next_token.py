"""Objectives that tell the next token: of all text, after a part that is seen whole, or of what an assistant says."""

from typing import Any

import numpy as np

from jaxllm.config import DataConfig, ObjectiveConfig
from jaxllm.data.corpus import Corpus
from jaxllm.data.examples import Examples, Noise, Pieces, Row, first_ends, laid, plan_whole
from jaxllm.data.packing import Plan, arranged, plan_pairs
from jaxllm.data.token_files import Documents


class NextToken(Examples):
    """Each token from those before it (`causal`); or from those and a part that is seen whole (`prefix`).

    The part is the first text of a pair, or as many of a piece's tokens as are drawn, each number being as likely.
    """

    beyond = 1

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig, virtual: range = range(0)):
        """With virtual tokens of these ids at the beginning of each piece."""
        super().__init__(objective, corpus, data)
        self._pairs = any(source.target_field is not None for source in data.sources)
        self._virtual, self._most = np.array(virtual, np.int32), self.read - len(virtual)

    @property
    def key(self) -> list[Any]:
        return [*(super().key if self._pairs else [self.read, self.packing]), len(self._virtual)]

    def keeps_whole(self, documents: Documents) -> bool:
        return self._pairs

    def plan(self, documents: Documents) -> Plan:
        if not self._pairs:
            return plan_pairs(documents, self.read, self.packing, len(self._virtual))
        lengths = np.diff(documents.starts) - 1
        sizes = lengths[:, None] + len(self._virtual)
        return plan_whole(documents.starts[:-1], lengths, sizes, {"data.sequence_length": self.read})

    def filled(self, plan: Plan) -> int:
        return plan.pairs + len(self._virtual) * len(plan.lengths)

    def row(self, pieces: Pieces, noise: Noise) -> Row:
        row = self._told(pieces, noise)
        return self._after_virtual(row, pieces.lengths - 1) if len(self._virtual) else row

    def _after_virtual(self, row: Row, lengths: np.ndarray) -> Row:
        """A row whose pieces have these lengths, with the virtual tokens before each."""
        longer = laid(lengths + len(self._virtual))
        is_virtual = longer["positions"] < len(self._virtual)
        for name in row.keys() - longer.keys():
            longer[name] = np.zeros(len(is_virtual), row[name].dtype)
            longer[name][~is_virtual] = row[name]
        longer["tokens"][is_virtual] = np.tile(self._virtual, len(lengths))
        longer["targets"][is_virtual] = self.tokenizer.pad_id
        return longer

    def _told(self, pieces: Pieces, noise: Noise) -> Row:
        tokens, lengths, trained = pieces
        row = laid(lengths - 1)
        place = np.arange(len(row["segments"])) + row["segments"] - 1  # a piece has one token more than it has pairs
        row |= {"tokens": tokens[place], "targets": tokens[place + 1]}
        if self.objective.kind != "prefix":
            return row | {"weights": np.ones(len(place), np.float32) if trained is None else trained[place + 1]}
        if self._pairs:
            starts = np.cumsum(lengths) - lengths
            seen = first_ends(tokens, starts, self.tokenizer.eos_id) - starts + 1
        else:
            seen = 1 + (noise().random(len(lengths)) * (lengths - 1)).astype(int)
        seen = np.repeat(seen, lengths - 1)
        return row | {"prefix": row["positions"] < seen, "weights": row["positions"] >= seen - 1}


class Supervised(NextToken):
    """What the assistant says in conversations (`sft`); texts beside them as `causal` has them."""

    def __init__(self, objective: ObjectiveConfig, corpus: Corpus, data: DataConfig, virtual: range = range(0)):
        super().__init__(objective, corpus, data, virtual)
        self._truncation = data.truncation

    @property
    def key(self) -> list[Any]:
        return ["conversations", self._truncation, *super().key]

    def keeps_whole(self, documents: Documents) -> bool:
        return documents.trained is not None

    def plan(self, documents: Documents) -> Plan:
        if documents.trained is None:
            return plan_pairs(documents, self.read, self.packing, len(self._virtual))
        starts, lengths = documents.starts[:-1].copy(), np.diff(documents.starts) - 1
        too_long = np.flatnonzero(lengths > self._most)
        for d in too_long.tolist():
            # The place of the last token that is kept; that of the first is a row before it.
            last = self._last_kept(documents.trained[starts[d] : starts[d] + lengths[d] + 1])
            starts[d], lengths[d] = starts[d] + max(0, last - self._most), min(last, self._most)
        if self._truncation == "leave_out":
            starts, lengths = np.delete(starts, too_long), np.delete(lengths, too_long)
        return arranged(starts, lengths, lengths + len(self._virtual), self.read)

    def _last_kept(self, trained: np.ndarray) -> int:
        """In a conversation that is longer than a row, of which some token is trained."""
        if self._truncation == "end" and trained[1 : self._most + 1].any():
            return self._most
        return int(np.flatnonzero(trained)[-1])
