"""Ctrl-C, SIGTERM and SIGHUP as a request to stop after the step in flight."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While this context is open, the first signal is noted and a second SIGINT or SIGTERM ends the process at once.

    A terminal that is closed sends SIGHUP, often twice; where it is ignored, as under `nohup`, it stays so. As other
    programs do, a process that stopped on request exits with 128 plus the signal's number: 130 after Ctrl-C, 143
    after SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, if one did."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        heard = (number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number != signal.SIGHUP:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which the progress line hides
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = self.signal or number
