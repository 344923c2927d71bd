"""Processes that one launcher starts, watches and ends. The stand-in for `jaxllm` is told what to do by its words."""

import os
import signal
import time

import pytest

from tests.launch.conftest import RECIPE, ROOT, alive, wait_for

STAND_IN = """
while (($#)); do case $1 in --process-id) id=$2 ;; --say) say=$2 ;; --do) act=$2 ;; esac; shift; done
echo $$ >"$RECORDS/pid$id"
eval "$act"
"""

PATIENT = """
told() { echo told $1 >>$RECORDS/told$id; exit $2; }
trap 'told TERM 143' TERM; trap 'told INT 130' INT
touch $RECORDS/ready$id; while :; do sleep 0.05; done
"""
"""Waits, writes down each signal, and stops with a checkpoint."""

DEAF = "trap '' TERM INT; touch $RECORDS/ready$id; while :; do sleep 0.05; done"


@pytest.fixture
def local(machine):
    machine.put("jaxllm", STAND_IN)
    return machine


def options(act: str, *more: str) -> list[str]:
    return ["local", *more, "--", RECIPE, "--do", act]


def count(machine, pattern: str) -> int:
    return len(list((machine.folder / "records").glob(pattern)))


def test_lines_begin_with_the_number_of_their_process(local):
    done = local.run(*options("echo out $id; echo err $id >&2", "--processes", "3"))
    assert done.returncode == 0
    expected = [line for i in range(3) for line in (f"[{i}] out {i}", f"[{i}] err {i}")]
    assert sorted(done.stdout.splitlines()) == sorted(expected)


def test_each_process_has_the_devices_that_are_asked_for(local):
    done = local.run(*options("echo $JAX_PLATFORMS $XLA_FLAGS", "--processes", "1", "--devices", "4"))
    assert done.stdout == "[0] cpu --xla_force_host_platform_device_count=4\n"
    environment = local.environment | {"XLA_FLAGS": "--mine"}
    done = local.run(*options("echo $XLA_FLAGS", "--processes", "1", "--devices", "4"), env=environment)
    assert done.stdout == "[0] --mine --xla_force_host_platform_device_count=4\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("restarts", ["0", "2"])
def test_a_signal_is_passed_on_once_and_waited_for(local, number, restarts):
    process = local.start(*options(PATIENT, "--restarts", restarts))
    wait_for(lambda: count(local, "ready*") == 2)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    process.communicate()
    name = number.name.removeprefix("SIG")
    for i in range(2):
        assert (local.folder / "records" / f"told{i}").read_text() == f"told {name}\n"


@pytest.mark.parametrize("restarts", ["0", "2"])
def test_the_ctrl_c_of_a_terminal_reaches_each_process_once(local, restarts):
    """A terminal signals every process of the group in the foreground, the launcher and what it started alike."""
    process = local.start(*options(PATIENT, "--restarts", restarts), start_new_session=True)
    wait_for(lambda: count(local, "ready*") == 2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    process.communicate()
    for i in range(2):
        assert (local.folder / "records" / f"told{i}").read_text() == "told INT\n"


def test_when_one_fails_the_others_are_stopped_and_its_status_is_given(local):
    act = f"if [[ $id = 1 ]]; then while [[ ! -e $RECORDS/ready0 ]]; do sleep 0.02; done; exit 3; fi; {PATIENT}"
    done = local.run(*options(act))
    assert (done.returncode, done.stderr) == (3, "launch/local: process 1 ended with status 3\n")
    assert (local.folder / "records" / "told0").read_text() == "told TERM\n"


def test_one_that_does_not_end_is_killed_when_its_time_is_up(local):
    act = f"if [[ $id = 1 ]]; then while [[ ! -e $RECORDS/ready0 ]]; do sleep 0.02; done; exit 3; fi; {DEAF}"
    started = time.monotonic()
    done = local.run(*options(act, "--grace", "1"))
    assert done.returncode == 3
    assert done.stderr.endswith("process 0 has not ended in 1 s and is killed\n")
    assert time.monotonic() - started < 5
    assert not alive(int((local.folder / "records" / "pid0").read_text()))


def test_one_that_is_done_earlier_is_waited_for_by_none(local):
    done = local.run(*options("[[ $id = 0 ]] && exit; sleep 0.5; echo late"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1] late\n", "")


TURN = "echo >>$RECORDS/turns$id; turn=$(cat $RECORDS/turns$id | sed -n '$='); "


def turns(machine) -> list[int]:
    return [len((machine.folder / "records" / f"turns{i}").read_text()) for i in range(2)]


def test_all_are_started_again_after_a_failure(local):
    done = local.run(*options(TURN + "[[ $turn = 3 || $id = 0 ]] || exit 7", "--restarts", "5"))
    assert done.returncode == 0
    assert turns(local) == [3, 3]
    assert "launch/restart: status 7; restart 2 of 5" in done.stderr


def test_bash_may_be_told_to_run_it(local):
    """By a name that is a word of bash."""
    words = options(TURN + "[[ $turn = 2 ]] || exit 7", "--restarts", "1")
    assert local.run("bash", *words, cwd=ROOT / "launch").returncode == 0
    assert turns(local) == [2, 2]


def test_restarts_are_counted(local):
    done = local.run(*options(TURN + "exit 7", "--restarts", "2"))
    assert done.returncode == 7
    assert turns(local) == [3, 3]


@pytest.mark.parametrize("status", [0, 2, 129, 130, 143])
def test_what_is_done_or_refused_or_was_stopped_is_not_started_again(local, status):
    done = local.run(*options(TURN + f"exit {status}", "--restarts", "2"))
    assert done.returncode == status
    assert turns(local) == [1, 1]


def test_a_signal_ends_the_pause_before_a_restart(local):
    environment = local.environment | {"JAXLLM_RESTART_PAUSE": "3"}
    process = local.start(*options("exit 7", "--restarts", "2"), env=environment)
    line = process.stderr.readline()
    while not line.startswith("launch/restart: status 7"):
        line = process.stderr.readline()
    process.terminate()
    assert process.wait(timeout=60) == 7
    process.communicate()
