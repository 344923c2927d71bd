"""Ctrl-C, SIGTERM and SIGHUP as a request to stop after the step in flight, the same in all processes of a run."""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from jaxllm.common.processes import Processes

ECHO = 5.0
"""Seconds within which a SIGTERM is the first one once more: Slurm sends it to a step twice when it preempts a job."""


class Interrupt:
    """While this context is open, the first SIGINT or SIGTERM is noted and the second ends the process at once.

    A SIGTERM does so after `ECHO` only. SIGHUP, which a terminal that closes sends, often more than once and with a
    SIGTERM, is only noted; where it is ignored, as under `nohup`, it stays so. As other programs do, a process that
    stopped on request exits with 128 plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, if one did."""
        self._came = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS if number not in ignored}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_echo = number == signal.SIGTERM and time.monotonic() - self._came < ECHO
        if self.signal not in (None, signal.SIGHUP) and number != signal.SIGHUP and not is_echo:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which the progress line hides
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.signal in (None, signal.SIGHUP):
            self.signal, self._came = number, time.monotonic()


class Stop:
    """Whether to stop, asked by every process at the same places of its program, so that the n-th answers are equal.

    The first process that has a reason calls the others. Each then says at its next question how far it has come, and
    all stop at the question of the one that was furthest: the others get there, since what lies between is dispatched
    by it too. So the agreement costs a step nothing. (`multihost_utils.reached_preemption_sync_point` of jax works
    alike, but knows SIGTERM alone.)
    """

    def __init__(self, processes: Processes, reason: Callable[[], int | None]):
        """
        Args:
            processes: of the run.
            reason: the signal for which this process would stop, or none.
        """
        self._processes, self._reason = processes, reason
        self._asked = 0
        self._at: int | None = None
        self.signal: int | None = None
        """The reason of the first process that has one, once all have agreed."""

    def __call__(self) -> bool:
        self._asked += 1
        if self._at is None:
            if self._reason() is not None:
                self._processes.call()
                self._agree(self._asked)
            elif self._processes.called:
                self._agree(self._asked)
        return self._at is not None and self._asked >= self._at

    def last(self) -> int | None:
        """The last question, with the signal that all stop for; whoever is called after that is not kept waiting."""
        stops = self()
        if self._at is None:
            self._agree(self._asked + 1)
        return self.signal if stops else None

    def _agree(self, asked: int) -> None:
        answers = self._processes.exchange("stop", [asked, self._reason()])
        self._at = max(at for at, _ in answers)
        self.signal = next((signal for _, signal in answers if signal is not None), None)
