"""A tokenised corpus: built once in the cache, then memory-mapped.

Two folders are made, each named after a hash of all that it follows from: `tokenizers/<key>` (the text, the
split and the tokenizer's settings) and `corpora/<key>` (the text, the split, the tokenizer's content and the chat
template, where there are conversations).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.common.paths import user_path
from jaxllm.common.processes import Processes
from jaxllm.config import DataConfig, TokenizerConfig, UserError, gives_conversations, to_dict
from jaxllm.data.builtin_templates import run_template
from jaxllm.data.cache import build_once, cache_root, key_of, manifest_info, writing_cache
from jaxllm.data.chat_template import ChatTemplate
from jaxllm.data.document import Source
from jaxllm.data.progress import status, track
from jaxllm.data.sources import open_source, task_name
from jaxllm.data.split import Split
from jaxllm.data.survey import BadRows, Survey, kept_documents, sample, survey
from jaxllm.data.token_files import Documents, Writer, open_documents
from jaxllm.data.tokenising import Encoder, encoded
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer


@dataclass(frozen=True)
class CorpusReport:
    """What became of the sources. Tokens do not count begin and end of a text, but all of a conversation."""

    documents: int
    held_out: int
    duplicates: int
    empty: int
    tokens: int
    bytes: int
    bad: BadRows

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


@dataclass(frozen=True)
class Task:
    """A part of the data that is mixed and measured by itself: a source, or a part of it that its records name."""

    source: int
    """The place of its source in the configuration."""
    name: str


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents of all sources, split, with the tokenizer that made them."""

    root: Path
    """The cache folder."""
    key: str
    """Names the content: equal keys mean equal tokens."""
    tokenizer: Tokenizer
    tokenizer_path: Path
    template: ChatTemplate | None
    """By which conversations were made texts; none where there are none."""
    tasks: tuple[Task, ...]
    """In the order of their sources."""
    train: tuple[Documents, ...]
    """The training documents of each task."""
    validation: tuple[Documents, ...]
    """The held-out documents of each task."""
    report: CorpusReport

    @property
    def held_out_bytes(self) -> int:
        """Of the text of all held-out documents."""
        return sum(documents.bytes for documents in self.validation)


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
    split = Split.of(data)
    text_key = [prints, dataclasses.astuple(split)]
    # Both folders below may need it, and neither does when both are there.
    found = functools.cache(lambda: survey(sources, split, skip_bad=data.skip_bad, progress=progress))

    def fill_tokenizer(folder: Path) -> dict[str, Any]:
        texts = sample(sources, found(), tokenizer.train_megabytes)
        with status(f"Training a tokenizer of {tokenizer.vocab_size} pieces", progress):
            train_tokenizer(texts, tokenizer, folder / "tokenizer.model")
        _check_unchanged(data, root, prints)
        return to_dict(tokenizer)

    def fill_corpus(folder: Path) -> dict[str, Any]:
        info = _tokenise(folder, data, sources, found(), loaded, template, progress)
        _check_unchanged(data, root, prints)
        return info

    if tokenizer.path is None:
        folder = root / "tokenizers" / key_of([text_key, to_dict(dataclasses.replace(tokenizer, chat_template=None))])
        build_once(folder, fill_tokenizer)
        tokenizer_path = folder / "tokenizer.model"
    else:
        tokenizer_path = user_path(tokenizer.path)
    loaded = load_tokenizer(tokenizer_path)
    template = _template(data, tokenizer, loaded)

    key = key_of([text_key, loaded.fingerprint, template and template.fingerprint()])
    info = build_once(root / "corpora" / key, fill_corpus)
    corpus = _opened(root, key, tokenizer_path, loaded, template, data, info)
    if not data.skip_bad:
        corpus.report.bad.refuse()  # what is in the cache may have been made without them
    return corpus


def _template(data: DataConfig, tokenizer: TokenizerConfig, loaded: Tokenizer) -> ChatTemplate | None:
    return run_template(tokenizer, loaded) if any(map(gives_conversations, data.sources)) else None


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
        key, path = found[first][0], Path(found[first][1])
        loaded = load_tokenizer(path)
        template = _template(data, tokenizer, loaded)
        corpus = _opened(root, key, path, loaded, template, data, manifest_info(root / "corpora" / key))
    return corpus, first == processes.index


def _opened(
    root: Path,
    key: str,
    tokenizer_path: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    data: DataConfig,
    info: dict[str, Any],
) -> Corpus:
    folder, dtype = root / "corpora" / key, np.dtype(info["dtype"])
    names = [task_name(data.sources[s]) if name is None else name for s, name in info["tasks"]]
    tasks = [
        Task(s, name if names.count(name) == 1 else f"{name} (data.sources.{s})")
        for (s, _), name in zip(info["tasks"], names, strict=True)
    ]
    splits: list[list[Documents]] = [[], []]
    for s in range(len(data.sources)):
        own = [counts for (source, _), counts in zip(info["tasks"], info["counts"], strict=True) if source == s]
        for opened, name, counts in zip(splits, ("train", "validation"), zip(*own, strict=True), strict=False):
            opened += open_documents(folder, f"{name}-{s}", dtype, counts)
    report = dict(info["report"])
    bad = BadRows(**{**report.pop("bad"), "first": tuple(info["report"]["bad"]["first"])})
    return Corpus(
        root=root,
        key=key,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        template=template,
        tasks=tuple(tasks),
        train=tuple(splits[0]),
        validation=tuple(splits[1]),
        report=CorpusReport(**report, bad=bad),
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
    folder: Path,
    data: DataConfig,
    sources: Sequence[Source],
    found: Survey,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    progress: bool,
) -> dict[str, Any]:
    """Writes the streams of all splits and returns what `prepare_corpus` reads back."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    documents = track(kept_documents(sources, found), len(found.size), "Tokenising", progress)
    counts, refused = np.zeros((len(found.tasks), 2), int), BadRows()
    tokens = size = 0
    with contextlib.ExitStack() as stack:
        writers = [
            [
                stack.enter_context(Writer(folder, f"{split}-{s}", dtype, gives_conversations(source)))
                for split in ("train", "validation")
            ]
            for s, source in enumerate(data.sources)
        ]
        for (task, held_out, document), made in encoded(documents, Encoder(tokenizer, dtype, template), data.workers):
            if isinstance(made, UserError):
                refused = refused.joined(str(made))
                continue
            writers[found.tasks[task][0]][held_out].add(document, task, *made)
            counts[task, int(held_out)] += 1
            tokens += len(made.ids) - (0 if document.chat else 1 + len(document.parts))
            size += sum(len(part.encode()) for part in document.parts)
    bad = found.bad.followed_by(refused)
    if not data.skip_bad:
        bad.refuse()
    report = CorpusReport(
        documents=int(counts.sum()),
        held_out=int(counts[:, 1].sum()),
        duplicates=found.duplicates,
        empty=found.empty,
        tokens=tokens,
        bytes=size,
        bad=bad,
    )
    return {
        "dtype": dtype.name,
        "tasks": found.tasks,
        "counts": counts.tolist(),
        "report": dataclasses.asdict(report),
    }
