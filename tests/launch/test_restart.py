"""What runs a command again on a machine: signals reach it exactly once."""

import os
import signal

import pytest

from tests.launch.conftest import wait_for

PATIENT = """
trap 'echo told >>"$HOME/told"; exit 143' TERM
touch "$HOME/ready"; while :; do sleep 0.05; done
"""


def test_a_signal_is_passed_on_and_ends_the_restarts(machine):
    process = machine.start("restart", "5", "bash", "-c", PATIENT)
    wait_for((machine.home / "ready").exists)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (machine.home / "told").read_text() == "told\n"


def test_where_every_process_is_told_nothing_is_passed_on(machine):
    process = machine.start("restart", "--told", "5", "bash", "-c", PATIENT, start_new_session=True)
    wait_for((machine.home / "ready").exists)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (machine.home / "told").read_text() == "told\n"


@pytest.mark.parametrize("words", [[], ["3"], ["many", "true"], ["08", "false"], ["--told", "3"]])
def test_it_needs_a_number_and_a_command(machine, words):
    done = machine.run("restart", *words)
    assert (done.returncode, done.stderr) == (
        2,
        "launch/restart: expected [--told] [--highest] K COMMAND [argument ...]\n",
    )


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (143, 143), (2, 255), (7, 255)])
def test_a_failure_can_outweigh_what_others_end_with(machine, status, expected):
    assert machine.run("restart", "--highest", "1", "bash", "-c", f"exit {status}").returncode == expected
