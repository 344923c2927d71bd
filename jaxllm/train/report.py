"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, and both kept in `log.txt`."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.progress import BarColumn, Progress, TextColumn

from jaxllm.common.console import plain_console
from jaxllm.train.run_folder import writing_in

Values = Mapping[str, float | None]


class _Screen:
    """The standard output, until its reader or its terminal goes away; after that, nothing."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        self.gone = False

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.gone = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Report:
    """Prints and logs. A context that holds `log.txt` open."""

    def __init__(self, folder: Path, speaks: bool = True):
        """
        Args:
            folder: of the run.
            speaks: whether anything is printed and logged; one process of a run does.

        Raises:
            UserError: the folder cannot be written.
        """
        self._folder = folder
        self._screen = _Screen()
        self._console = plain_console(file=cast(TextIO, self._screen))
        self._console.quiet = not speaks
        with writing_in(folder):
            # Unbuffered: nothing is left that could fail when it is closed.
            self._log = open(folder / "log.txt" if speaks else os.devnull, "ab", buffering=0)  # noqa: SIM115  by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._log.close()

    @property
    def unread(self) -> bool:
        """Nobody sees any more what is printed: the pipe or the terminal is closed."""
        return self._screen.gone

    def say(self, text: str) -> None:
        """A sentence that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)
        self.log(text)

    @contextlib.contextmanager
    def live(self, steps: int) -> Iterator[None]:
        """Within it a terminal shows a bar and the latest progress, under what is said."""
        bar = TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=None), TextColumn("{task.description}")
        shown = self._console.is_terminal
        with Progress(*bar, console=self._console, transient=True, expand=True, disable=not shown) as self._bar:
            self._task = self._bar.add_task("", total=steps, visible=False)
            yield

    def progress(self, step: int, values: Values, seconds_left: float) -> None:
        """Training metrics; on a terminal they take the place of those before."""
        total = self._bar.tasks[self._task].total
        text = progress_line(values, seconds_left)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, description=text, visible=True)
            self.log(f"step {step}/{total:.0f}  {text}")
        else:
            self.say(f"step {step}/{total:.0f}  {text}")

    def log(self, text: str) -> None:
        """Into `log.txt` alone."""
        with writing_in(self._folder):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n".encode())


def progress_line(values: Values, seconds_left: float) -> str:
    """`loss 3.412  2.310 bits/byte  12,345 tokens/s  MFU 41.2 %  3:12 left`; what is not known is left out."""
    parts = [f"loss {values['loss']:.4f}"]
    if values["bits_per_byte"] is not None:
        parts.append(f"{values['bits_per_byte']:.4f} bits/byte")
    parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.1%}")
    if values["skipped"]:
        parts.append(f"{values['skipped']:.0f} skipped")
    return "  ".join([*parts, f"{duration(seconds_left)} left"])


def duration(seconds: float) -> str:
    """`0:07`, `12:34` or `5:01:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
