"""What a signal raises in a command, so that it closes its files and says how to go on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LATER = 0.1
"""Seconds after which a signal comes again that came while a module was imported."""


class Terminated(BaseException):
    """A SIGTERM came. No `KeyboardInterrupt`: that one ends an answer of `jaxllm chat` only, this one all."""


RAISED: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextmanager
def signals() -> Iterator[None]:
    """While this context is open, SIGINT and SIGTERM raise what `RAISED` says, unless they are ignored or handled."""
    free = (signal.SIG_DFL, signal.default_int_handler)
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: handler for number in RAISED if is_main and (handler := signal.getsignal(number)) in free}
    for number in before:
        signal.signal(number, _come)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _come(number: int, frame: FrameType | None) -> None:
    if not _imports(frame):
        raise RAISED[number]
    # There it would become an ImportError, or be lost where that is expected.
    timer = threading.Timer(LATER, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    return frame is not None
