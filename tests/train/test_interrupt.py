import random
import signal
import subprocess
import sys
import time

import pytest

from jaxllm.common.processes import ALONE
from jaxllm.train.interrupt import Interrupt, Stop
from tests.together import together


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


def test_a_sigterm_that_comes_twice_is_one_request():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
    program = """
import signal
from jaxllm.train import interrupt
interrupt.ECHO = 0.0
with interrupt.Interrupt():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGTERM


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


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_ask_alike_stop_at_the_same_question_and_not_before_the_signal(seed):
    def ask(processes):
        choose = random.Random(f"{seed} {processes.index}")
        comes = choose.randrange(30) if processes.index == 1 else 99
        asked = 0
        stop = Stop(processes, lambda: signal.SIGTERM if asked >= comes else None)
        for asked in range(20):
            time.sleep(choose.random() / 1000)
            if stop():
                return asked, stop.last(), comes
        return None, stop.last(), comes

    answers = together(3, ask)
    comes = answers[1][2]
    assert len({answer[:2] for answer in answers}) == 1
    at, number, _ = answers[0]
    assert number == (None if at is None else signal.SIGTERM)
    assert at is None if comes >= 20 else at is None or at >= comes


def test_a_process_that_is_alone_stops_at_the_next_question():
    reasons = [None, signal.SIGINT, signal.SIGINT]
    stop = Stop(ALONE, lambda: reasons[0])
    assert not stop()
    reasons.pop(0)
    assert stop()
    assert stop.last() == signal.SIGINT
