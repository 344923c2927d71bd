"""Ctrl-C, SIGTERM and SIGHUP as a request to stop after the step in flight."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While this context is open, the first SIGINT or SIGTERM is noted and the second ends the process at once.

    SIGHUP, which a terminal that closes sends, often more than once and with a SIGTERM, is only noted; where it is
    ignored, as under `nohup`, it stays so. As other programs do, a process that stopped on request exits with 128 plus
    the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, if one did."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS if number not in ignored}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal not in (None, signal.SIGHUP) and number != signal.SIGHUP:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which the progress line hides
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.signal in (None, signal.SIGHUP):
            self.signal = number
