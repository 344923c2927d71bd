"""What a source gives: documents, read by index."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jaxllm.config import UserError


class BadRow(UserError):
    """A document that cannot be used, where those beside it may be: `file:line: reason`."""


class Chat(NamedTuple):
    """A conversation. Its messages are as chat templates read them, but for `weight`, which only training reads."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    """JSON schemas of what the assistant may call."""


@dataclass(frozen=True)
class Document:
    """A named text. The name is what a person looks for when a batch goes wrong."""

    name: str
    text: str
    target: str | None = None
    """What is to be written after the text, where the two are a pair."""
    named_by_place: bool = field(default=False, kw_only=True)
    """The name tells where the text stands, and is another's when text is put before it: a line, a row, a part."""
    task: str | None = field(default=None, kw_only=True)
    """What the field of tasks says, where the source has one."""
    group: str | None = field(default=None, kw_only=True)
    """Documents of one group are on the same side of the split."""
    chat: Chat | None = field(default=None, kw_only=True)
    """The conversation, of which `text` is all that is said in it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The text; and the target, if there is one. The last is what must not be empty."""
        return (self.text,) if self.target is None else (self.text, self.target)

    @property
    def content(self) -> bytes:
        """What is equal in equal documents alone."""
        parts = self.parts if self.chat is None else (json.dumps(self.chat, sort_keys=True),)
        return b"\0".join(part.encode() for part in parts)  # no text holds a NUL


class Source(Protocol):
    """A sequence of documents. Opening one is cheap; its content is read when it is asked for."""

    def fingerprint(self) -> str:
        """A hash of everything that decides the documents, so that equal fingerprints mean equal text."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document:
        """Raises `BadRow`, naming the file and the place, where the content is not text; `UserError`, if that is gone.

        What is read in order is read fastest.
        """


def checked_text(value: object, where: str) -> str:
    """`value` as text that UTF-8 can carry; none, as JSON and Parquet know it, is empty.

    Raises:
        BadRow: `value` is neither text nor bytes, is not UTF-8, or holds a NUL, which text never does.
    """
    try:
        if value is None:
            text = ""
        elif isinstance(value, bytes):
            text = value.decode()
        elif isinstance(value, str):
            value.encode()  # JSON can spell half a surrogate pair, which no encoder takes
            text = value
        else:
            raise BadRow(f"{where}: expected text, got {type(value).__name__} {value!r:.60}")
    except UnicodeError as error:
        place = (
            f"at {error.start}: {error.reason}" if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else ""
        )
        raise BadRow(f"{where}: not valid UTF-8 ({place}); convert it, or take it out") from None
    if "\0" in text:
        raise BadRow(f"{where}: a NUL character at {text.index(chr(0))}: this is binary data, not text; take it out")
    return text


class Record(NamedTuple):
    """A row of a file or of a data set."""

    name: str
    where: str
    """As `name`, for messages: with the path of the file."""
    fields: Mapping[str, Any]


class Records(Protocol):
    """A sequence of records, of which documents are made."""

    def fingerprint(self) -> str:
        """As that of a `Source`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises as that of a `Source` does."""


def marks_of(record: Record, task_field: str | None, group_field: str | None) -> tuple[str | None, str | None]:
    """The task and the group of a document that a record names, each if a field is to name it.

    Raises:
        BadRow: it does not.
    """
    task = _mark(record, task_field, "the name of a task")
    return task, _mark(record, group_field, "the name of a group")


def _mark(record: Record, named: str | None, what: str) -> str | None:
    if named is None:
        return None
    mark = record.fields.get(named)
    if isinstance(mark, str | bytes):
        mark = checked_text(mark, f"{record.where}, field '{named}'")
    if mark in (None, "") or not isinstance(mark, str | int):
        raise BadRow(f"{record.where}, field '{named}': expected {what}, got {mark!r:.60}")
    return str(mark)
