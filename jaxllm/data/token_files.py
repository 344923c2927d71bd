"""Tokenised documents on disk: written in the order in which they come, and opened task by task."""

import itertools
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from jaxllm.data.document import Document


@dataclass(frozen=True)
class Documents:
    """Tokenised documents of a task, in one memory-mapped stream. Document d is `tokens[starts[d]:starts[d + 1]]`."""

    tokens: np.ndarray
    """uint16 or uint32 [all tokens of the source]: begin of document, text, end of document; and so on. Of a pair:
    begin, text, end, target, end. Of a conversation: what its template makes of it."""
    index: np.ndarray
    """int64 [documents + 1, 3]: tokens, bytes of names and bytes of text before each document."""
    names: np.ndarray
    """uint8 [bytes of names], one after the other."""
    trained: np.ndarray | None = None
    """bool [all tokens of the source]: of conversations, those that the model is to write; none where that is all."""

    def __len__(self) -> int:
        return len(self.index) - 1

    @property
    def starts(self) -> np.ndarray:
        return self.index[:, 0]

    @property
    def span(self) -> slice:
        """Where in `tokens` the documents lie."""
        return slice(int(self.index[0, 0]), int(self.index[-1, 0]))

    @property
    def bytes(self) -> int:
        """Bytes of UTF-8 in all documents: a summed loss / ln 2 / this is bits a byte."""
        return int(self.index[-1, 2] - self.index[0, 2])

    @property
    def trained_tokens(self) -> int:
        """Of all documents."""
        return self.span.stop - self.span.start if self.trained is None else int(self.trained[self.span].sum())

    def name(self, document: int) -> str:
        start, stop = self.index[document : document + 2, 1]
        return self.names[start:stop].tobytes().decode()


class Writer:
    """Appends documents to the files of a source, which `open_documents` maps; when it is left, they lie by tasks."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, masked: bool):
        """
        Args:
            folder: where they are.
            name: of the source and the split.
            dtype: of tokens.
            masked: there are documents of which not all tokens are trained.
        """
        self._path = folder / name
        types = {"tokens": dtype, "names": np.dtype(np.uint8)} | ({"trained": np.dtype(bool)} if masked else {})
        self._types = types
        self._files = {suffix: open(self._path.with_name(f"{name}.{suffix}"), "wb") for suffix in types}  # noqa: SIM115
        self._index, self._tasks = array("q", (0, 0, 0)), array("i")

    def __enter__(self) -> Self:
        return self

    def add(self, document: Document, task: int, ids: np.ndarray, trained: np.ndarray | None) -> None:
        """One more; `trained` are those of its tokens that are, where the source is masked."""
        name = document.name.encode()
        for suffix, content in (("tokens", ids), ("names", name), ("trained", trained)):
            if suffix in self._files:
                self._files[suffix].write(content if isinstance(content, bytes) else np.asarray(content).tobytes())
        tokens, names, size = self._index[-3:]
        self._index.extend((tokens + len(ids), names + len(name), size + len("".join(document.parts).encode())))
        self._tasks.append(task)

    def __exit__(self, kind: type | None, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if kind is not None:  # nobody will open them
            return
        index, tasks = np.array(self._index).reshape(-1, 3), np.array(self._tasks, np.int32)
        if (np.diff(tasks) < 0).any():
            index = self._by_task(index, np.argsort(tasks, kind="stable"))
        self._file("index").write_bytes(index.tobytes())

    def _file(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")

    def _by_task(self, index: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Puts what was written into another order, and gives the index of that."""
        for suffix, dtype in self._types.items():
            column, path = int(suffix == "names"), self._file(suffix)
            content = _mapped(path, dtype)
            with open(path.with_suffix(".sorting"), "wb") as file:
                for document in order.tolist():
                    file.write(content[slice(*index[document : document + 2, column].tolist())].tobytes())
            os.replace(path.with_suffix(".sorting"), path)
        sizes = np.diff(index, axis=0)[order]
        return np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(sizes, axis=0)])


def open_documents(folder: Path, name: str, dtype: np.dtype, counts: Sequence[int]) -> list[Documents]:
    """Those of each task, of which there are so many, in the files that a `Writer` of that name has left."""
    tokens, names = _mapped(folder / f"{name}.tokens", dtype), _mapped(folder / f"{name}.names", np.dtype(np.uint8))
    index = _mapped(folder / f"{name}.index", np.dtype(np.int64)).reshape(-1, 3)
    masks = folder / f"{name}.trained"
    trained = _mapped(masks, np.dtype(bool)) if masks.exists() else None
    ends = itertools.pairwise(itertools.accumulate(counts, initial=0))
    return [Documents(tokens, index[start : stop + 1], names, trained) for start, stop in ends]


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))
