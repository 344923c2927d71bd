"""What Slurm runs on the first node: it queues the job again before its time is up, and only then."""

import signal

import pytest

from tests.launch.conftest import wait_for

TASK = """
while [[ $1 = -* ]]; do shift; done
trap 'exit 143' TERM
echo $$ >"$HOME/task"
touch "$HOME/ready"
while [[ ! -e $HOME/status ]]; do sleep 0.02; done
exit "$(<"$HOME/status")"
"""
"""In the place of srun and its task: Slurm sends SIGTERM to the task when `scancel --signal` asks for it."""


@pytest.fixture
def slurm(machine):
    machine.put("srun", TASK)
    machine.put("scancel", 'echo "$@" >>"$HOME/scancel"; kill -TERM "$(<"$HOME/task")"')
    machine.put("scontrol", 'echo "$@" >>"$HOME/scontrol"')
    return machine


def job(slurm, number: signal.Signals | None = None, status: int | None = None) -> int:
    """The status of a job that gets a signal and whose tasks end with a status."""
    process = slurm.start("slurm_job", "jaxllm", env=slurm.environment | {"SLURM_JOB_ID": "7"})
    wait_for((slurm.home / "ready").exists)
    if number is not None:
        process.send_signal(number)
    if status is not None:
        (slurm.home / "new").write_text(str(status))
        (slurm.home / "new").rename(slurm.home / "status")
    process.communicate(timeout=60)
    return process.returncode


def test_before_the_time_is_up_a_checkpoint_is_written_and_the_job_queued_again(slurm):
    assert job(slurm, signal.SIGUSR1) == 143
    assert (slurm.home / "scancel").read_text() == "--signal=TERM 7\n"
    assert (slurm.home / "scontrol").read_text() == "requeue 7\n"


def test_where_the_tasks_alone_are_stopped_the_job_was_preempted_and_is_queued_again(slurm):
    assert job(slurm, status=143) == 143
    assert (slurm.home / "scontrol").read_text() == "requeue 7\n"


@pytest.mark.parametrize("status", [0, 255])
def test_a_run_that_ends_or_fails_meanwhile_is_not_queued_again(slurm, status):
    slurm.put("scancel", "exit 0")
    assert job(slurm, signal.SIGUSR1, status) == status
    assert not (slurm.home / "scontrol").exists()


@pytest.mark.parametrize("status", [0, 137, 255])
def test_otherwise_it_is_not_queued_again(slurm, status):
    assert job(slurm, status=status) == status
    assert not (slurm.home / "scontrol").exists()


def test_one_that_is_cancelled_waits_for_its_tasks_and_leaves_the_rest_to_slurm(slurm):
    assert job(slurm, signal.SIGTERM, 143) == 143
    assert not (slurm.home / "scancel").exists()
    assert not (slurm.home / "scontrol").exists()
