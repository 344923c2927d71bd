"""SIGTERM as an exception, so that a command that is ended by it closes its files and says how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """A SIGTERM came. No `KeyboardInterrupt`: that one ends an answer of `jaxllm chat` only, this one all."""


@contextmanager
def termination() -> Iterator[None]:
    """While this context is open, SIGTERM raises `Terminated`, unless it is ignored or another handler has it."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated
