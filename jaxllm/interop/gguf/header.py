"""The header of a GGUF file: its metadata, and where each tensor lies.

Read here and not by `gguf.GGUFReader`, which takes every count on trust (one of 2^60 never ends) and makes an array of
each element (seconds for a vocabulary). A test holds the two to the same result.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxllm.common.paths import user_path
from jaxllm.config import UserError

SCALARS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "?", "", "", "u8", "i8", "f8")
"""The numpy type of each type number; 8 is a string and 9 an array."""

STRING, ARRAY = 8, 9

DIMENSIONS = 4
"""The most that ggml's tensors have."""


class Stored(NamedTuple):
    """A tensor as it lies in the file."""

    shape: tuple[int, ...]
    """Outermost axis first."""
    kind: str
    """ggml's name of its type, such as `Q4_1`; the number of one that the package does not know."""
    data: np.ndarray
    """A view of the file; of bytes, but for F32 and F16."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `metadata` holds arrays of numbers as numpy arrays, and of strings as lists."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """A whole number of at least `least`.

        Raises:
            UserError: it is missing and has no default, or is another thing.
        """
        return self._typed(key, default, int, f"a whole number of at least {least}", lambda value: value >= least)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as the shortest decimal that is the same float32."""
        value = self._typed(key, default, (int, float), "a number of float32", lambda x: abs(x) < 3e38)
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return self._typed(key, default, bool, "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._typed(key, default, str, "a text")

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        return self._typed(key, None, list, "a list of texts")

    def numbers(self, key: str) -> list[Any]:
        """A list of numbers."""
        return self._typed(key, None, np.ndarray, "a list of numbers").tolist()

    def _typed(self, key: str, default: Any, kind: Any, expected: str, holds: Any = lambda value: True) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise UserError(f"'{self.path}' has no '{key}' in its metadata, without which it cannot be read")
        is_kind = isinstance(value, kind) and (isinstance(value, bool) == (kind is bool))
        if not is_kind or not holds(value):
            shown = f"a list of {len(value)}" if isinstance(value, list | np.ndarray) else repr(value)
            raise UserError(f"'{self.path}': {key} is {shown:.200}; expected {expected}")
        return value


def gguf_package() -> ModuleType:
    """The package `gguf`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(f"GGUF needs the package {error.name}: pip install 'jaxllm[interop]'") from None
    return gguf


def read_header(path: str | Path) -> Header:
    """The header of the GGUF file `path`; the tensors themselves are mapped, not read.

    Raises:
        UserError: it cannot be opened, is not a GGUF file that this reads, is damaged, or is cut short.
    """
    gguf_package()
    path = user_path(path)
    try:
        data = np.memmap(path, mode="r")
    except ValueError:  # numpy maps no empty file
        raise UserError(f"'{path}' is empty: it is not a GGUF file") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    return _Parser(path, data).header()


class _Parser:
    """Walks through the header; every read is checked against the end of the file."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.view, self.at = path, data, data.data, 0

    def header(self) -> Header:
        if bytes(self.view[:4]) != b"GGUF":
            raise UserError(f"'{self.path}' is not a GGUF file: it begins with {bytes(self.view[:4])!r}, not b'GGUF'")
        self.at = 4
        version = self.scalar("u4", "the version")
        if version not in (2, 3):
            swapped = version and version % 0x10000 == 0
            what = "big-endian, and little-endian files" if swapped else f"of version {version}, and versions 2 and 3"
            raise UserError(f"'{self.path}' is {what} are read")
        tensors = self.count("tensors", self.scalar("u8", "the number of tensors"), 24)
        entries = self.count("metadata", self.scalar("u8", "the number of metadata"), 13)
        metadata = self.unique("metadata", (self.entry() for _ in range(entries)))
        infos = self.unique("tensor", (self.info() for _ in range(tensors)))
        return Header(self.path, metadata, self.located(infos, metadata))

    def unique(self, what: str, pairs: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise self.damaged(f"has the {what} '{name}' twice")
            found[name] = value
        return found

    def damaged(self, how: str) -> UserError:
        return UserError(f"'{self.path}' {how}: it is damaged; get it again")

    def take(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin, which are then passed."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.view):
            raise self.damaged(f"ends after {len(self.view):,} bytes, inside {what}")
        return start

    def count(self, what: str, count: int, least: int) -> int:
        """`count`, if that many things of at least `least` bytes have room."""
        if count * least > len(self.view) - self.at:
            raise self.damaged(f"of {len(self.view):,} bytes cannot hold the {count:,} {what} that it says it has")
        return count

    def scalar(self, dtype: str, what: str) -> Any:
        return self.scalars(dtype, 1, what)[0].item()

    def scalars(self, dtype: str, count: int, what: str) -> np.ndarray:
        kind = np.dtype(dtype).newbyteorder("<")
        start = self.take(kind.itemsize * count, what)
        return np.frombuffer(self.view, kind, count, start)

    def string(self, what: str) -> str:
        (length,) = struct.unpack_from("<Q", self.view, self.take(8, what))
        start = self.take(length, what)
        try:
            return str(self.view[start : self.at], "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"has bytes that are no UTF-8 in {what}") from None

    def entry(self) -> tuple[str, Any]:
        key = self.string("the name of a metadatum")
        kind = self.scalar("u4", key)
        if kind != ARRAY:
            return key, self.value(kind, key)
        kind, count = self.scalar("u4", key), self.scalar("u8", key)
        if kind == STRING:
            return key, [self.string(key) for _ in range(self.count(f"texts of {key}", count, 8))]
        dtype = self.dtype(kind, key)
        return key, self.scalars(dtype, self.count(f"numbers of {key}", count, np.dtype(dtype).itemsize), key)

    def value(self, kind: int, key: str) -> Any:
        return self.string(key) if kind == STRING else self.scalar(self.dtype(kind, key), key)

    def dtype(self, kind: int, key: str) -> str:
        if kind >= len(SCALARS) or not SCALARS[kind]:
            raise self.damaged(f"gives '{key}' the type {kind}, which no value has here")
        return SCALARS[kind]

    def info(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self.string("the name of a tensor")
        dimensions = self.scalar("u4", name)
        if dimensions > DIMENSIONS:
            raise self.damaged(
                f"gives the tensor '{name}' {dimensions:,} dimensions, of which {DIMENSIONS} is the most"
            )
        shape = tuple(self.scalars("u8", dimensions, name).tolist()[::-1])
        return name, (shape, self.scalar("u4", name), self.scalar("u8", name))

    def located(self, infos: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Stored]:
        gguf = gguf_package()
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"has the alignment {alignment!r}")
        begin = -(-self.at // alignment) * alignment
        tensors = {}
        for name, (shape, number, offset) in infos.items():
            try:
                kind = gguf.GGMLQuantizationType(number)
            except ValueError:
                tensors[name] = Stored(shape, str(number), self.data[:0])
                continue
            block, size = gguf.GGML_QUANT_SIZES[kind]
            if not shape or not all(shape) or shape[-1] % block:
                raise self.damaged(f"has the tensor '{name}' of shape {shape}, which {kind.name} cannot have")
            end = begin + offset + math.prod(shape) // block * size
            if end > len(self.view):
                where = f"the tensor '{name}', which goes to byte {end:,}"
                raise self.damaged(f"ends after {len(self.view):,} bytes, before the end of {where}")
            raw = self.data[begin + offset : end]
            dtype = {"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8)
            tensors[name] = Stored(shape, kind.name, np.asarray(raw.view(dtype)).reshape(*shape[:-1], -1))
        return tensors
