"""Local files, and the documents in plain text and source code."""

import contextlib
import difflib
import glob
import gzip
import os
import re
import weakref
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from jaxllm.common.paths import user_path
from jaxllm.config import UserError
from jaxllm.data.cache import file_hashes, key_of
from jaxllm.data.document import Document, checked_text

CODE = """
    py pyi c h cc cpp cxx hpp cu cuh rs go java kt scala swift cs js jsx mjs ts tsx rb php pl lua jl r hs ml
    ex exs erl clj sh sql proto cmake html css
"""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".txt.gz", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "parquet": (".parquet",),
    "code": tuple(f".{suffix}" for suffix in CODE.split()),
}
"""What is read of a folder; a glob or a file is taken as it is."""

PART = 1 << 16
"""Bytes: a longer text file becomes several documents, so that a part of one large file can be held out."""

CUT_CONTEXT = 64
"""Bytes before a cut that decide it."""

File = tuple[str, Path]
"""A name that does not depend on the machine, and where the file lies."""


def find_files(kind: str, path: str) -> list[File]:
    """The files of a folder, of a glob, or the file itself, ordered by name; hidden folders are passed over.

    Raises:
        UserError: there is none, with what to look for.
    """
    target = user_path(path)
    if target.is_file():
        return [(_clean(target.name), target)]
    if target.is_dir():
        base, wanted = target, SUFFIXES[kind]
        found = [p for p in target.rglob("*") if p.name.lower().endswith(wanted)]
        missing = f"the folder '{path}' holds no {', '.join(wanted[:4])} file"
    else:
        if not glob.has_magic(path):
            raise UserError(f"no such file or folder: '{path}'{_nearest(target)}")
        base = Path(*target.parts[: next(i for i, part in enumerate(target.parts) if glob.has_magic(part))])
        found = [Path(p) for p in glob.glob(str(target), recursive=True)]
        missing = f"no file matches '{path}'"
    names = ((p.relative_to(base), p) for p in found if p.is_file())
    files = sorted((_clean(n.as_posix()), p) for n, p in names if not any(s.startswith(".") for s in n.parts))
    if not files:
        raise UserError(f"{missing}; give a file, a folder or a glob such as 'folder/**/*{SUFFIXES[kind][0]}'")
    return files


def _clean(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _nearest(path: Path) -> str:
    near: list[str] = []
    with contextlib.suppress(OSError):  # the folder may be missing too, or closed to us
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean '{path.parent / near[0]}'?" if near else ""


class Content:
    """The bytes of a file, read as they are asked for. Unlike a mapping it survives a file that is cut short."""

    def __init__(self, path: Path):
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        found = os.pread(self._descriptor, stop - start, start)
        while len(found) < stop - start:  # more than the system gives at once
            more = os.pread(self._descriptor, stop - start - len(found), start + len(found))
            if not more:
                raise UserError(
                    f"'{self._path}' has changed while it was read; run the same command again when it is at rest"
                )
            found += more
        return found

    def lines(self) -> Iterator[bytes]:
        """Each with its end."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            yield from file


class Files:
    """Files under one source: their fingerprint, and the bytes of the one that was read last."""

    def __init__(self, files: Sequence[File]):
        self.files = files
        self._last: tuple[Path, bytes | Content] | None = None

    def fingerprint(self) -> str:
        try:
            hashes = file_hashes(path for _, path in self.files)
        except OSError as error:
            raise unreadable(error.filename, error) from None
        names = [name for name, _ in self.files]
        return key_of([type(self).__name__, names, hashes])

    def content(self, path: Path) -> bytes | Content:
        """The file's bytes, not loaded (only a `.gz` is unpacked in memory)."""
        if self._last is None or self._last[0] != path:
            try:
                packed = path.suffix.lower() == ".gz"
                content = gzip.decompress(path.read_bytes()) if packed else Content(path)
            except (OSError, EOFError, zlib.error) as error:
                raise unreadable(path, error) from None
            self._last = path, content
        return self._last[1]


def unreadable(path: object, error: Exception) -> UserError:
    """What is said of a file that the system, or the reader of its format, refuses."""
    return UserError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}")


class CodeFiles(Files):
    """Each file is a document."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Document:
        name, path = self.files[index]
        return Document(name, checked_text(self.content(path)[:], str(path)))


class TextFiles(Files):
    """Each file is a document; one of more than `PART` bytes is cut into `name#0`, `name#1`, ..."""

    @cached_property
    def _parts(self) -> list[tuple[int, str, int, int]]:
        """(file, name, start, stop) of each document."""
        parts = []
        for i, (name, path) in enumerate(self.files):
            cuts = _cuts(self.content(path))
            names = [f"{name}#{k}" for k in range(len(cuts) - 1)] if len(cuts) > 2 else [name]
            parts += [(i, *part) for part in zip(names, cuts, cuts[1:], strict=False)]
        return parts

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Document:
        i, name, start, stop = self._parts[index]
        path = self.files[i][1]
        where = f"{path} (after byte {start})" if start else str(path)
        whole = stop - start == len(self.content(path))
        return Document(name, checked_text(self.content(path)[start:stop], where), named_by_place=not whole)


def _cuts(content: bytes | Content) -> list[int]:
    """0, ..., size, at most `PART` apart."""
    cuts = [0]
    while len(content) - cuts[-1] > PART:
        cuts.append(_cut(content, cuts[-1]))
    return [*cuts, len(content)]


def _cut(content: bytes | Content, start: int) -> int:
    """After a blank line `PART / 2` to `PART` bytes from `start`, else after a line, else after a character.

    Of several places the bytes before it choose one, not the distance, so that the cuts after a change of the file
    soon fall where they fell before it (content-defined chunking: Muthitacharoen et al. 2001, "A low-bandwidth network
    file system"). Text without line ends, or whose lines are all equal, is cut by distance.
    """
    part = content[start : start + PART + 1]
    for end in (rb"\n\r?\n", rb"\n"):
        stops = [found.end() for found in re.compile(end).finditer(part, PART // 2, PART)]
        if stops:
            return start + max(stops, key=lambda stop: (zlib.crc32(part[stop - CUT_CONTEXT : stop]), stop))
    return start + next((k for k in range(PART, PART - 4, -1) if part[k] & 0xC0 != 0x80), PART)
