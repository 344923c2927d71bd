"""The consoles that the package prints on."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A console with such options that prints names as they are: `[/b]` and `:fire:` in them mean nothing."""
    return Console(markup=False, emoji=False, **options)
