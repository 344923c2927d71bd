"""A tokenised corpus: built once in the cache, then memory-mapped.

Two folders are made, each named after a hash of all that it follows from: `tokenizers/<key>` (the text, the
split and the tokenizer's settings) and `corpora/<key>` (the text, the split and the tokenizer's content).
"""

import contextlib
import dataclasses
import functools
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxllm.common.paths import user_path
from jaxllm.common.processes import Processes
from jaxllm.config import DataConfig, TokenizerConfig, UserError, to_dict
from jaxllm.data.cache import build_once, cache_root, key_of, manifest_info, writing_cache
from jaxllm.data.document import Document, Source
from jaxllm.data.progress import status, track
from jaxllm.data.sources import open_source
from jaxllm.data.survey import Survey, kept_documents, sample, survey
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer

BATCH_CHARACTERS = 1 << 18
"""Of text, that one thread tokenises at a time."""


@dataclass(frozen=True)
class Documents:
    """Tokenised documents in one memory-mapped stream. Document d is `tokens[starts[d]:starts[d + 1]]`."""

    tokens: np.ndarray
    """uint16 or uint32 [all tokens]: begin of document, text, end of document; and so on. Of a pair: begin, text, end,
    target, end."""
    index: np.ndarray
    """int64 [documents + 1, 3]: tokens, bytes of names and bytes of text before each document."""
    names: np.ndarray
    """uint8 [bytes of names], one after the other."""

    def __len__(self) -> int:
        return len(self.index) - 1

    @property
    def starts(self) -> np.ndarray:
        return self.index[:, 0]

    @property
    def bytes(self) -> int:
        """Bytes of UTF-8 in all documents: a summed loss / ln 2 / this is bits a byte."""
        return int(self.index[-1, 2])

    def name(self, document: int) -> str:
        start, stop = self.index[document : document + 2, 1]
        return self.names[start:stop].tobytes().decode()


@dataclass(frozen=True)
class CorpusReport:
    """What became of the sources. Tokens do not count begin and end of document."""

    documents: int
    held_out: int
    duplicates: int
    empty: int
    tokens: int
    bytes: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents of all sources, split, with the tokenizer that made them."""

    root: Path
    """The cache folder."""
    key: str
    """Names the content: equal keys mean equal tokens."""
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: tuple[Documents, ...]
    """The training documents of each source, in the order of the configuration."""
    validation: Documents
    """The held-out documents of all sources."""
    report: CorpusReport


def prepare_corpus(data: DataConfig, tokenizer: TokenizerConfig, progress: bool = False) -> Corpus:
    """The corpus of `data`, from the cache or else built; `progress` shows bars on standard error.

    Without `tokenizer.path`, a tokenizer is trained on the training split first. Weights, sequence length and
    packing change nothing here.

    Raises:
        UserError: a source or tokenizer that cannot be used, or a cache that is damaged or cannot be written.
    """
    root = cache_root(data.cache_dir)
    sources = [open_source(source, root) for source in data.sources]
    prints = [source.fingerprint() for source in sources]
    text_key = [prints, data.validation_fraction]
    # Both folders below may need it, and neither does when both are there.
    found = functools.cache(lambda: survey(sources, data.validation_fraction, progress))

    def fill_tokenizer(folder: Path) -> dict[str, Any]:
        texts = sample(sources, found(), tokenizer.train_megabytes)
        with status(f"Training a tokenizer of {tokenizer.vocab_size} pieces", progress):
            train_tokenizer(texts, tokenizer, folder / "tokenizer.model")
        _check_unchanged(data, root, prints)
        return to_dict(tokenizer)

    def fill_corpus(folder: Path) -> dict[str, Any]:
        info = _tokenise(folder, sources, found(), loaded, data.workers, progress)
        _check_unchanged(data, root, prints)
        return info

    if tokenizer.path is None:
        folder = root / "tokenizers" / key_of([text_key, to_dict(tokenizer)])
        build_once(folder, fill_tokenizer)
        tokenizer_path = folder / "tokenizer.model"
    else:
        tokenizer_path = user_path(tokenizer.path)
    loaded = load_tokenizer(tokenizer_path)

    key = key_of([text_key, loaded.fingerprint])
    info = build_once(root / "corpora" / key, fill_corpus)
    return _opened(root, key, tokenizer_path, loaded, info)


def shared_corpus(data: DataConfig, tokenizer: TokenizerConfig, processes: Processes) -> tuple[Corpus, bool]:
    """The corpus of `data` in every process; one on each file system prepares it, which the others open.

    Only that one reads the sources and checks what is in the cache.

    Returns:
        The corpus, and whether it was this process that prepared it.

    Raises:
        UserError: as `prepare_corpus` does; or the text is not the same on all hosts.
    """
    if processes.count == 1:
        return prepare_corpus(data, tokenizer, progress=True), True
    root = cache_root(data.cache_dir)
    with writing_cache(root):
        root.mkdir(parents=True, exist_ok=True)
        first = processes.first_that_sees(root)
    corpus = None
    if first == processes.index:
        corpus = prepare_corpus(data, tokenizer, progress=processes.is_first)
    found = processes.exchange("corpus", corpus and [corpus.key, str(corpus.tokenizer_path)])
    for index, other in enumerate(found):
        if other and other[0] != found[0][0]:
            raise UserError(
                f"{processes.name(index)} has another text or tokenizer than {processes.name(0)}: give all hosts the "
                "same files, or a --data.cache-dir that they share"
            )
    if corpus is None:
        key, tokenizer_path = found[first]
        info = manifest_info(root / "corpora" / key)
        corpus = _opened(root, key, Path(tokenizer_path), load_tokenizer(Path(tokenizer_path)), info)
    return corpus, first == processes.index


def _opened(root: Path, key: str, tokenizer_path: Path, tokenizer: Tokenizer, info: dict[str, Any]) -> Corpus:
    folder = root / "corpora" / key
    dtype = np.dtype(info["dtype"])
    sources = len(list(folder.glob("train-*.index")))
    return Corpus(
        root=root,
        key=key,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        train=tuple(_open(folder, f"train-{s}", dtype) for s in range(sources)),
        validation=_open(folder, "validation", dtype),
        report=CorpusReport(**info["report"]),
    )


def _check_unchanged(data: DataConfig, root: Path, prints: Sequence[str]) -> None:
    """
    Raises:
        UserError: a source is not what it was when its fingerprint was taken, which names what is built from it.
    """
    for i, (source, before) in enumerate(zip(data.sources, prints, strict=True)):
        if open_source(source, root).fingerprint() != before:
            raise UserError(
                f"data.sources.{i} ({source.path or source.kind}) has changed while it was read; nothing of it was "
                "kept: run the same command again when it is at rest"
            )


def _tokenise(
    folder: Path, sources: Sequence[Source], found: Survey, tokenizer: Tokenizer, workers: int, progress: bool
) -> dict[str, Any]:
    """Writes the streams of all splits and returns what `prepare_corpus` reads back."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    documents = track(kept_documents(sources, found), len(found.size), "Tokenising", progress)
    tokens = 0
    with contextlib.ExitStack() as stack:
        train = [stack.enter_context(_Writer(folder, f"train-{s}")) for s in range(len(sources))]
        validation = stack.enter_context(_Writer(folder, "validation"))
        for (source, held_out, document), ids in _encoded(documents, tokenizer, dtype, workers):
            (validation if held_out else train[source]).add(document, ids)
            tokens += len(ids) - 1 - len(document.parts)
    report = CorpusReport(
        documents=len(found.size),
        held_out=int(found.held_out.sum()),
        duplicates=found.duplicates,
        empty=found.empty,
        tokens=tokens,
        bytes=int(found.size.sum()),
    )
    return {"dtype": dtype.name, "report": dataclasses.asdict(report)}


Kept = tuple[int, bool, Document]


def _encoded(
    documents: Iterable[Kept], tokenizer: Tokenizer, dtype: np.dtype, workers: int
) -> Iterator[tuple[Kept, np.ndarray]]:
    """Each document with its tokens, in order.

    Threads do it, and not processes, since both tokenizer libraries release the interpreter's lock.
    """
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]

    def encode(batch: list[Kept]) -> list[tuple[Kept, np.ndarray]]:
        encoded = iter(tokenizer.encode_batch([part for _, _, document in batch for part in document.parts]))
        found = []
        for kept in batch:
            parts = list(islice(encoded, len(kept[2].parts)))
            if len(parts) > 1 and any(tokenizer.eos_id in part for part in parts):
                raise UserError(f"{kept[2].name}: its text makes the token that ends the parts of a pair; take it out")
            found.append((kept, np.array(bos + [i for part in parts for i in part + eos], dtype)))
        return found

    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[list[tuple[Kept, np.ndarray]]]] = deque()
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


class _Writer:
    """Appends documents to the files that `_open` maps."""

    def __init__(self, folder: Path, name: str):
        self._index_path = folder / f"{name}.index"
        self._tokens = open(folder / f"{name}.tokens", "wb")  # noqa: SIM115  closed by __exit__
        self._names = open(folder / f"{name}.names", "wb")  # noqa: SIM115
        self._index = array("q", (0, 0, 0))

    def __enter__(self) -> Self:
        return self

    def add(self, document: Document, ids: np.ndarray) -> None:
        name = document.name.encode()
        self._tokens.write(ids.tobytes())
        self._names.write(name)
        tokens, names, size = self._index[-3:]
        self._index.extend((tokens + len(ids), names + len(name), size + len("".join(document.parts).encode())))

    def __exit__(self, *_: object) -> None:
        with self._tokens, self._names:
            self._index_path.write_bytes(self._index.tobytes())


def _open(folder: Path, name: str, dtype: np.dtype) -> Documents:
    def mapped(suffix: str, dtype: np.dtype) -> np.ndarray:
        path = folder / f"{name}.{suffix}"
        if path.stat().st_size == 0:  # which cannot be mapped
            return np.empty(0, dtype)
        return np.asarray(np.memmap(path, dtype, mode="r"))

    return Documents(
        tokens=mapped("tokens", dtype),
        index=mapped("index", np.dtype(np.int64)).reshape(-1, 3),
        names=mapped("names", np.dtype(np.uint8)),
    )
