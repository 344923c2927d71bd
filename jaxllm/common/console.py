"""The consoles that the package prints on."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console with such options that prints names as they are: `[/b]` and `:fire:` in them mean nothing."""
    return Console(markup=False, emoji=False, **options)


def wide_console() -> Console:
    """One as wide as the terminal; where there is none, wide enough for every column of a table."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=200)
