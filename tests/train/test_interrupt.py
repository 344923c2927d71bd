import signal
import subprocess
import sys

from jaxllm.train.interrupt import Interrupt


def test_the_first_signal_is_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_terminal_that_closes_is_noted_however_often_it_says_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.signal == signal.SIGHUP
            signal.raise_signal(signal.SIGTERM)  # as systemd sends both
            assert interrupt.signal == signal.SIGTERM
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_the_process_at_once():
    program = """
import signal
from jaxllm.train.interrupt import Interrupt
with Interrupt() as interrupt:
    signal.raise_signal(signal.SIGINT)
    print("noted", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "noted\n", "")
