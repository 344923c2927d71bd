"""What a person sees on standard error while data is prepared."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], total: int, what: str, shown: bool) -> Iterator[T]:
    """`items`, with a bar that is wiped when they end."""
    console = Console(stderr=True)
    yield from rich_track(items, what, total=total, console=console, transient=True, disable=not shown)


def status(what: str, shown: bool) -> AbstractContextManager[Any]:
    """A spinner while the block runs."""
    return Console(stderr=True, quiet=not shown).status(what)
