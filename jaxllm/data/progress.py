"""What a person sees on standard error while data is prepared."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from rich.progress import track as rich_track

from jaxllm.common.console import plain_console

T = TypeVar("T")


def track(items: Iterable[T], total: int, what: str, shown: bool) -> Iterator[T]:
    """`items`, with a bar that is wiped when they end."""
    console = plain_console(stderr=True)
    yield from rich_track(items, what, total=total, console=console, transient=True, disable=not shown)


def status(what: str, shown: bool) -> AbstractContextManager[Any]:
    """A spinner while the block runs."""
    return plain_console(stderr=True, quiet=not shown).status(what)
