"""Documents as tokens, by several threads."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from jaxllm.config import UserError
from jaxllm.data.chat_template import ChatTemplate
from jaxllm.data.chat_tokens import encode_training, training_end
from jaxllm.data.document import Document
from jaxllm.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 18
"""Of text, that one thread tokenises at a time."""

Kept = tuple[int, bool, Document]
"""(task, held out, document)."""


class Tokens(NamedTuple):
    """Of a document."""

    ids: np.ndarray
    trained: np.ndarray | None
    """bool: of a conversation, the tokens that the model is to write."""


class Encoder:
    """Makes tokens of documents, and of conversations by a template."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, template: ChatTemplate | None):
        """
        Raises:
            UserError: a template that nothing can be trained by.
        """
        self._tokenizer, self._dtype, self._template = tokenizer, dtype, template
        self._end = None if template is None else training_end(template, tokenizer)

    def __call__(self, batch: list[Kept]) -> list[Tokens | UserError]:
        """The tokens of each, or why the template refuses it.

        Raises:
            UserError: a text that makes the token by which the two texts of a pair are told apart.
        """
        texts = [document for _, _, document in batch if document.chat is None]
        chats = [document for _, _, document in batch if document.chat is not None]
        made = {"texts": iter(self._texts(texts)), "chats": iter(self._chats(chats))}
        return [next(made["texts" if document.chat is None else "chats"]) for _, _, document in batch]

    def _texts(self, documents: list[Document]) -> list[Tokens | UserError]:
        bos, eos = [self._tokenizer.bos_id], [self._tokenizer.eos_id]
        encoded = iter(self._tokenizer.encode_batch([part for document in documents for part in document.parts]))
        found: list[Tokens | UserError] = []
        for document in documents:
            parts = list(islice(encoded, len(document.parts)))
            if len(parts) > 1 and any(self._tokenizer.eos_id in part for part in parts):
                raise UserError(f"{document.name}: its text makes the token that ends the parts of a pair; take it out")
            found.append(Tokens(np.array(bos + [i for part in parts for i in part + eos], self._dtype), None))
        return found

    def _chats(self, documents: list[Document]) -> list[Tokens | UserError]:
        if not documents:
            return []
        assert self._template is not None
        chats = [document.chat for document in documents if document.chat is not None]
        encoded = encode_training(self._template, self._tokenizer, chats, self._end)
        return [
            UserError(f"{document.name}: {each}")
            if isinstance(each, UserError)
            else Tokens(np.array(each.ids, self._dtype), np.array(each.trained))
            for document, each in zip(documents, encoded, strict=True)
        ]


def encoded(documents: Iterable[Kept], encoder: Encoder, workers: int) -> Iterator[tuple[Kept, Tokens | UserError]]:
    """Each document with what `encoder` makes of it, in order.

    Threads do it, and not processes, since both tokenizer libraries release the interpreter's lock, and templates are
    rendered in processes of their own.
    """

    def encode(batch: list[Kept]) -> list[tuple[Kept, Tokens | UserError]]:
        return list(zip(batch, encoder(batch), strict=True))

    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[list[tuple[Kept, Tokens | UserError]]]] = deque()
        try:
            for batch in _batches(documents):
                running.append(pool.submit(encode, batch))
                if len(running) > 2 * workers:  # bounds the text that is in memory
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    size = 0
    for kept in documents:
        batch.append(kept)
        size += sum(map(len, kept[2].parts))
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch
