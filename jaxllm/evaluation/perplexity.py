"""How well a decoder predicts whole texts."""

from collections.abc import Callable, Sequence
from itertools import groupby

from jaxllm.config import UserError
from jaxllm.data.cache import cache_root
from jaxllm.data.document import Document
from jaxllm.data.sources import open_source, parse_source
from jaxllm.evaluation.likelihood import windows
from jaxllm.evaluation.model import Model
from jaxllm.train.evaluate import HeldOut

LONGEST_WINDOW = 2048
"""Tokens of a window where none is asked for, at most: beyond, a CPU takes long and little is gained."""


def read_texts(path: str, field: str) -> list[str]:
    """The texts of a source: a plain file is one text, and of JSON lines or Parquet each row is one.

    Args:
        path: as `parse_source` takes it; a plain file, if its suffix says nothing.
        field: of the text, where rows have fields.

    Raises:
        UserError: a file cannot be read, is not text, or there is none.
    """
    source = open_source(parse_source(path, field, otherwise="text"), cache_root(None))
    documents = (source[i] for i in range(len(source)))
    texts = ["".join(part.text for part in parts) for _, parts in groupby(documents, _whole)]
    texts = [text for text in texts if text]
    if not texts:
        raise UserError(f"--text {path}: there is no text in it")
    return texts


def _whole(document: Document) -> str:
    """The name of what a document is a part of, if it is one of a long file."""
    file, mark, part = document.name.rpartition("#")
    return file if document.named_by_place and mark and part.isdecimal() else document.name


def perplexity(
    model: Model,
    texts: Sequence[str],
    window: int | None = None,
    stride: int | None = None,
    on_plan: Callable[[int], Callable[[int], None]] = lambda tokens: lambda done: None,
) -> HeldOut:
    """The sums over the tokens of all texts, each read in windows by itself (`likelihood.windows`).

    Args:
        model: a decoder.
        texts: are begun as the model's prompts are.
        window: tokens that are read at once; none means the model's positions, but `LONGEST_WINDOW` at most.
        stride: tokens from a window to the next; none means as many as a window has, so that none overlap.
        on_plan: is told how many tokens will be predicted, and gives what is told how many are.

    Raises:
        UserError: the model is no decoder, a number will not do, or nothing can be predicted.
    """
    most = model.reads
    window = min(most, LONGEST_WINDOW) if window is None else window
    if window > most:
        raise UserError(f"--window {window}: the model reads {most} tokens (max_positions, less virtual ones)")
    ids = [[*model.begin, *own] for own in model.tokenizer.encode_batch(texts)]
    requests = [request for own in ids for request in windows(own, window, window if stride is None else stride)]
    predicted = sum(len(request.continuation) for request in requests)
    if not predicted:
        raise UserError("the text has but one token, of which nothing can be predicted")
    scores = model.scorer.score(requests, on_plan(predicted))
    share = predicted / sum(len(own) - len(model.begin) for own in ids)
    return HeldOut(
        -sum(score.log_prob for score in scores), predicted, share * sum(len(text.encode()) for text in texts)
    )
