"""What a source gives: documents, read by index."""

from dataclasses import dataclass, field
from typing import Protocol

from jaxllm.config import UserError


@dataclass(frozen=True)
class Document:
    """A named text. The name is what a person looks for when a batch goes wrong."""

    name: str
    text: str
    target: str | None = None
    """What is to be written after the text, where the two are a pair."""
    named_by_place: bool = field(default=False, kw_only=True)
    """The name tells where the text stands, and is another's when text is put before it: a line, a row, a part."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The text; and the target, if there is one. The last is what must not be empty."""
        return (self.text,) if self.target is None else (self.text, self.target)


class Source(Protocol):
    """A sequence of documents. Opening one is cheap; its content is read when it is asked for."""

    def fingerprint(self) -> str:
        """A hash of everything that decides the documents, so that equal fingerprints mean equal text."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document:
        """Raises `UserError`, naming the file and the place, where the content is not text."""


def checked_text(value: object, where: str) -> str:
    """`value` as text that UTF-8 can carry; none, as JSON and Parquet know it, is empty.

    Raises:
        UserError: `value` is neither text nor bytes, is not UTF-8, or holds a NUL, which text never does.
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
            raise UserError(f"{where}: expected text, got {type(value).__name__} {value!r:.60}")
    except UnicodeError as error:
        place = (
            f"at {error.start}: {error.reason}" if isinstance(error, UnicodeDecodeError | UnicodeEncodeError) else ""
        )
        raise UserError(f"{where}: not valid UTF-8 ({place}); convert it, or take it out") from None
    if "\0" in text:
        raise UserError(f"{where}: a NUL character at {text.index(chr(0))}: this is binary data, not text; take it out")
    return text
