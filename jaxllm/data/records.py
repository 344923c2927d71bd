"""Records in local files, JSON lines and Parquet; and the texts in records of any kind."""

import bisect
import io
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import UserError
from jaxllm.data.cache import key_of
from jaxllm.data.document import BadRow, Document, Record, Records, checked_text, marks_of
from jaxllm.data.files import Content, File, Files, unreadable


class JsonLines(Files):
    """Each line that is not blank is an object: the record `name:line`."""

    @cached_property
    def _index(self) -> tuple[list[np.ndarray], list[int]]:
        """Each file's lines, int64 [lines, (start, stop, number from 1)]; and the running count of lines."""
        lines = [_lines(self.content(path)) for _, path in self.files]
        return lines, list(itertools.accumulate(map(len, lines)))

    def __len__(self) -> int:
        return self._index[1][-1]

    def __getitem__(self, index: int) -> Record:
        lines, ends = self._index
        i, row = _locate(ends, index)
        start, stop, number = lines[i][row].tolist()
        name, path = self.files[i]
        where = f"{path}:{number}"
        line = checked_text(self.content(path)[start:stop].rstrip(), where)
        if start == 0:
            line = line.removeprefix("\N{BYTE ORDER MARK}")
        remedy = "; jq -c '.[]' FILE makes lines of a list" if line.startswith("[") else ""
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadRow(f"{where}: not JSON: {error.msg} at column {error.colno}{remedy}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
            raise BadRow(f"{where}: JSON that cannot be read: {error}") from None
        if not isinstance(fields, dict):
            raise BadRow(f"{where}: expected an object with named fields, got {fields!r:.60}{remedy}")
        return Record(f"{name}:{number}", where, fields)


def _lines(content: bytes | Content) -> np.ndarray:
    index, stop = array("q"), 0
    lines = content.lines() if isinstance(content, Content) else io.BytesIO(content)
    for number, line in enumerate(lines, 1):
        start, stop = stop, stop + len(line)
        if not line.isspace():
            index.extend((start, stop, number))
    return np.frombuffer(index, np.int64).reshape(-1, 3)


def _locate(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Which part, of those that end at `ends`, holds `index`, and the place in it."""
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


class ParquetRow(Mapping[str, Any]):
    """The fields of a row, each made when it is asked for; a BadRow says which cannot be. It holds its row group."""

    def __init__(self, group: "RowGroup", row: int, where: str):
        self._group, self._row, self._where = group, row, where

    def __getitem__(self, name: str) -> Any:
        if name not in self._group.names:
            raise KeyError(name)
        try:
            return self._group.column(name)[self._row].as_py()
        except (ValueError, OverflowError) as error:  # times with nanoseconds or beyond the year 9999, broken UTF-8
            raise BadRow(f"{self._where}, field '{name}': cannot be read: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._group.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._group.names)

    def __len__(self) -> int:
        return len(self._group.names)


class RowGroup:
    """Of a file of Parquet, whose columns are read when they are asked for."""

    def __init__(self, file: Any, number: int, path: Path, names: Sequence[str]):
        """`names` are the columns that there are for others."""
        self.names = names
        self._file, self._number, self._path = file, number, path
        self._columns: dict[str, Any] = {}

    def column(self, name: str) -> Any:
        """
        Raises:
            UserError: it cannot be read.
        """
        import pyarrow

        if name not in self._columns:
            try:
                self._columns[name] = self._file.read_row_group(self._number, [name])[name]
            except (OSError, pyarrow.ArrowException) as error:
                raise unreadable(self._path, error) from None
        return self._columns[name]


class ParquetFiles(Files):
    """Each row is the record `name:row`; one row group is held."""

    def __init__(self, files: Sequence[File], wanted: Mapping[str, str] | None = None):
        """`wanted` are the columns that are read, by the options that gave them; every file must have them."""
        super().__init__(files)
        self._wanted, self._columns = wanted, [*dict.fromkeys((wanted or {}).values())]
        self._opened: tuple[Path | None, Any] = (None, None)
        self._held: tuple[int, RowGroup | None] = (-1, None)

    @cached_property
    def _index(self) -> tuple[list[tuple[int, int, int]], list[int]]:
        """(file, row group, its first row in the file) of each group; and the running count of rows."""
        groups, sizes = [], []
        for i, (_, path) in enumerate(self.files):
            meta = self._open(path).metadata
            rows = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
            groups += [(i, g, first) for g, first in enumerate(itertools.accumulate(rows[:-1], initial=0))][: len(rows)]
            sizes += rows
        return groups, list(itertools.accumulate(sizes))

    def _open(self, path: Path) -> Any:
        """The file; the last one stays open."""
        if self._opened[0] != path:
            self._opened = path, self._checked(path)
        return self._opened[1]

    def _checked(self, path: Path) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise unreadable(path, error) from None
        if missing := missing_field(str(path), self._wanted or {}, file.schema_arrow.names):
            raise UserError(missing)
        return file

    def __len__(self) -> int:
        ends = self._index[1]
        return ends[-1] if ends else 0

    def __getitem__(self, index: int) -> Record:
        groups, ends = self._index
        group, row = _locate(ends, index)
        i, number, first = groups[group]
        name, path = self.files[i]
        at, held = self._held
        if held is None or at != group:
            file = self._open(path)
            held = RowGroup(file, number, path, file.schema_arrow.names if self._wanted is None else self._columns)
            self._held = group, held
        where = f"{path}, row {first + row}"
        return Record(f"{name}:{first + row}", where, ParquetRow(held, row, where))


class TextRecords:
    """Documents: the text in one field of each record, and the target in another if there is one."""

    def __init__(self, records: Records, wanted: Mapping[str, str]):
        """`wanted` are the names of fields by the options that gave them: `field`, `target_field`, `task_field`,
        `group_field`."""
        self._records, self._wanted = records, wanted
        self._texts = [wanted[option] for option in ("field", "target_field") if option in wanted]

    def fingerprint(self) -> str:
        return key_of(["text", self._wanted, self._records.fingerprint()])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        record = self._records[index]
        if missing := missing_field(record.where, self._wanted, record.fields):
            raise BadRow(missing)
        texts = (checked_text(record.fields[field], f"{record.where}, field '{field}'") for field in self._texts)
        task, group = marks_of(record, self._wanted.get("task_field"), self._wanted.get("group_field"))
        return Document(record.name, *texts, named_by_place=True, task=task, group=group)


def missing_field(where: str, wanted: Mapping[str, str], there: Iterable[str]) -> str | None:
    """What to say of the first field that is wanted and not there; they are named by the options that gave them."""
    for option, field in wanted.items():
        if field not in there:
            setting = f"data.sources.N.{option}" + (" (--field where there is no recipe)" if option == "field" else "")
            return f"{where}: no field '{field}'; it has {', '.join(there)}; set {setting}"
    return None
