"""The watch over a TPU, against a stand-in for gcloud whose hosts are folders of this machine."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import HOSTILE, RECIPE, RECORDS, ROOT, Machine, alive, wait_for

OPTIONS = ["tpu_pod", "--name", "a", "--zone", "z", "--type", "v6e-8", "--runs", "gs://c", "--spot", "--poll", "1"]

GCLOUD = """
[[ "$1 $2" = 'compute tpus' ]] || exit 9
cloud=$HOME/cloud
case "$3 $4" in
  'queued-resources create') echo "$@" >>"$cloud/log"; echo "${QUEUE:-ACTIVE}" >"$cloud/state" ;;
  'queued-resources describe')
    [[ -f $cloud/state ]] || { echo 'ERROR: NOT_FOUND: Resource not found' >&2; exit 1; }
    cat "$cloud/state" ;;
  'queued-resources delete') echo "$@" >>"$cloud/log"; rm -rf "$cloud/state" "$cloud"/host* ;;
  'tpu-vm scp') for i in 0 1; do mkdir -p "$cloud/host$i"; cp "$5" "$cloud/host$i/${6#*:}"; done ;;
  'tpu-vm ssh')
    [[ $(<"$cloud/state") = ACTIVE ]] || exit 255
    status=0
    for word in "$@"; do [[ $word != --command=* ]] || command=${word#*=}; done
    echo "$command" >>"$cloud/log"
    for i in 0 1; do
      mkdir -p "$cloud/host$i"
      (cd "$cloud/host$i" && HOST=$i CLOUD=$cloud HOME=$PWD bash -c "$command") || status=$?
    done
    exit "$status" ;;
  *) exit 9 ;;
esac
"""

FAILING = """
[[ "$*" != *"{word}"* ]] || {{ echo >>"$HOME/failed"; exit 1; }}
"""
"""Stands before `GCLOUD`: what has the word in it fails."""

TRAIN = """
echo "$$" >"$CLOUD/pid$HOST"
while [[ ! -e $CLOUD/status$HOST ]] && ((SECONDS < 120)); do sleep 0.05; done
exit "$(<"$CLOUD/status$HOST")"
"""
"""A run that ends with the status that lies in the cloud."""


@pytest.fixture
def cloud(machine) -> Iterator[Path]:
    """The folder of the stand-in's state."""
    machine.put("gcloud", GCLOUD)
    for name in ("mountpoint", "sudo", "gcsfuse"):
        machine.put(name, "exit 0")
    machine.put("sleep", f"exec {shutil.which('sleep')} 0.05")  # the looks at the TPU follow each other quickly
    machine.put("uv", 'echo "$@" >>"$HOME/uv"')
    folder = machine.home / "cloud"
    folder.mkdir()
    yield folder
    end(folder, 0, 0)  # also what a test that failed left running


def counted(cloud: Path, word: str) -> int:
    """How often gcloud was asked for something."""
    return (cloud / "log").read_text().count(word)


def running(cloud: Path) -> bool:
    files = [cloud / f"pid{i}" for i in range(2)]
    return all(file.exists() and file.read_text() for file in files)


def end(cloud: Path, *statuses: int) -> None:
    for i, status in enumerate(statuses):
        (cloud / f"status{i}.new").write_text(str(status))
        (cloud / f"status{i}.new").rename(cloud / f"status{i}")


def test_the_words_arrive_on_every_host(machine: Machine, cloud: Path):
    machine.put("jaxllm", RECORDS)
    done = machine.run(*OPTIONS, "--", RECIPE, *HOSTILE)
    assert done.returncode == 0, done.stderr
    expected = ["train", "configs/pretrain/quickstart.py", *HOSTILE, "--output", "/mnt/jaxllm/a"]
    assert machine.records() == [expected] * 2
    assert counted(cloud, "create a --node-id=a --zone=z --accelerator-type=v6e-8") == 1
    assert counted(cloud, "--runtime-version=v2-alpha-tpuv6e --spot") == 1
    assert counted(cloud, "delete a --zone=z --force --quiet") == 1


def test_what_was_made_in_the_checkout_does_not_travel(machine: Machine, cloud: Path):
    machine.put("jaxllm", 'shopt -s dotglob; echo * >"$CLOUD/listed$HOST"')
    copy = machine.checkout()
    travels = {path.name for path in copy.iterdir()}
    for name in (".venv", ".venv-3.13", ".mypy_cache", "runs", "models", "build"):
        (copy / name).mkdir()
        (copy / name / "large").touch()
    launcher, *options = OPTIONS
    done = machine.run(f"{copy}/launch/{launcher}", *options, "--", f"{copy}/{Path(RECIPE).relative_to(ROOT)}")
    assert done.returncode == 0, done.stderr
    assert {*(cloud / "listed0").read_text().split()} == travels


def test_a_tpu_that_is_taken_away_is_asked_for_again_and_the_run_goes_on(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--", RECIPE)
    wait_for(lambda: running(cloud))
    pids = [int((cloud / f"pid{i}").read_text()) for i in range(2)]
    (cloud / "state").write_text("SUSPENDED\n")
    wait_for(lambda: counted(cloud, "tpu_worker start") == 2)
    end(cloud, 0, 0)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "'a' was taken away; asking for another" in told
    assert "the run has ended; its folder is a in gs://c" in told
    assert counted(cloud, "queued-resources create") == 2
    for pid in pids:
        wait_for(lambda pid=pid: not alive(pid))


def test_a_watch_that_is_stopped_leaves_the_run_and_the_same_command_watches_on(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--", RECIPE, start_new_session=True)
    wait_for(lambda: running(cloud))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the run goes on without this watch" in told
    pids = [int((cloud / f"pid{i}").read_text()) for i in range(2)]
    assert all(map(alive, pids))
    looks = counted(cloud, "tpu_worker status")
    again = machine.start(*OPTIONS, "--", RECIPE)
    wait_for(lambda: counted(cloud, "tpu_worker status") >= looks + 2)  # the first of them has seen the run
    end(cloud, 0, 0)
    _, told = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "the run was started before: what changed since in the checkout or in the TPU's options" in told
    assert counted(cloud, "tpu_worker start") == 1


@pytest.mark.parametrize("changed", [["--", RECIPE, "--seed", "1"], ["--runs", "gs://d", "--", RECIPE]])
def test_other_words_than_those_of_the_run_that_lives_are_refused(machine: Machine, cloud: Path, changed):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--", RECIPE, "--name", "a  b", start_new_session=True)
    wait_for(lambda: running(cloud))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    for words in (changed, ["--", RECIPE, "--name", "a", "b"]):
        done = machine.run(*OPTIONS, *words)
        assert done.returncode == 2
        message = "'a' trains another recipe or with other options: give those, or end that run first: gcloud compute "
        assert message in done.stderr
    assert all(alive(int((cloud / f"pid{i}").read_text())) for i in range(2))
    assert counted(cloud, "tpu_worker start") == 1
    assert counted(cloud, "queued-resources delete") == 0
    *_, first = done.stderr.splitlines()
    assert machine.run("bash", "-c", first.partition("run first: ")[2]).returncode == 0
    assert not any(alive(int((cloud / f"pid{i}").read_text())) for i in range(2))


@pytest.mark.parametrize(("statuses", "expected"), [((2, 2), 2), ((7, 7), 7), ((0, 7), 7)])
def test_a_run_that_fails_ends_the_watch_and_the_tpu(machine: Machine, cloud: Path, statuses, expected):
    machine.put("jaxllm", f"echo why; {TRAIN}")
    end(cloud, *statuses)
    done = machine.run(*OPTIONS, "--restarts", "0", "--", RECIPE)
    assert done.returncode == expected
    assert "why" in done.stdout
    assert counted(cloud, "queued-resources delete") == 1


def test_one_host_that_refuses_ends_all(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--keep", "--", RECIPE)
    wait_for(lambda: running(cloud))
    end(cloud, 2)
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert counted(cloud, "queued-resources delete") == 0
    assert not alive(int((cloud / "pid1").read_text()))


def test_after_a_reboot_of_a_host_the_run_is_started_again(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--", RECIPE)
    wait_for(lambda: running(cloud))
    pids = [int((cloud / f"pid{i}").read_text()) for i in range(2)]
    os.killpg(int((cloud / "host0/.jaxllm-worker/pid").read_text()), signal.SIGKILL)
    wait_for(lambda: counted(cloud, "tpu_worker start") == 2)
    wait_for(lambda: not any(map(alive, pids)))
    end(cloud, 0, 0)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_after_an_orderly_reboot_of_a_host_too(machine: Machine, cloud: Path):
    """It tells the run of that host, and so all, to end with a checkpoint."""
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--", RECIPE)
    wait_for(lambda: running(cloud))
    for i in range(2):
        os.killpg(int((cloud / f"host{i}/.jaxllm-worker/pid").read_text()), signal.SIGTERM)
    wait_for(lambda: counted(cloud, "tpu_worker start") == 2)
    end(cloud, 0, 0)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert counted(cloud, "queued-resources delete") == 1


def test_a_checkout_that_did_not_arrive_whole_is_copied_again(machine: Machine, cloud: Path):
    machine.put("jaxllm", "exit 0")
    (cloud / "host1/jaxllm").mkdir(parents=True)
    (cloud / "state").write_text("ACTIVE\n")
    assert machine.run(*OPTIONS, "--", RECIPE).returncode == 0


def test_a_host_that_cannot_be_reached_is_told_once(machine: Machine, cloud: Path):
    machine.put("gcloud", FAILING.format(word="tpu_worker status") + GCLOUD)
    process = machine.start(*OPTIONS, "--", RECIPE)
    wait_for(lambda: (machine.home / "failed").exists() and (machine.home / "failed").stat().st_size > 2)
    machine.put("jaxllm", "exit 0")
    machine.put("gcloud", GCLOUD)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told.count("'a' is ACTIVE, but not every host can be reached\n") == 1


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (7, 7)])
def test_a_tpu_that_cannot_be_deleted_is_told(machine: Machine, cloud: Path, status, expected):
    machine.put("gcloud", FAILING.format(word="queued-resources delete") + GCLOUD)
    machine.put("jaxllm", TRAIN)
    end(cloud, status, status)
    done = machine.run(*OPTIONS, "--restarts", "0", "--", RECIPE)
    assert done.returncode == expected
    assert "the run has " in done.stderr
    assert "'a' could not be deleted and is still paid for: gcloud compute tpus queued-resources " in done.stderr


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("word", ["scp", "tpu_worker start"])
def test_an_install_that_fails_is_repeated_as_often_as_a_run(machine: Machine, cloud: Path, restarts, word):
    machine.put("gcloud", FAILING.format(word=word) + GCLOUD)
    done = machine.run(*OPTIONS, "--restarts", str(restarts), "--", RECIPE)
    assert done.returncode == 1
    assert len((machine.home / "failed").read_text().splitlines()) == restarts + 1
    assert f"the run did not start on every host (tries: {restarts + 1}; see above)" in done.stderr
    assert counted(cloud, "queued-resources delete") == 1


def test_a_run_that_dies_without_a_status_is_not_started_for_ever(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    machine.put("setsid", "exit 0")
    done = machine.run(*OPTIONS, "--restarts", "1", "--", RECIPE)
    assert done.returncode == 1
    assert counted(cloud, "tpu_worker start") == 2
    assert counted(cloud, "queued-resources delete") == 1


def test_starts_are_counted_from_the_last_time_that_all_hosts_trained(machine: Machine, cloud: Path):
    machine.put("jaxllm", TRAIN)
    process = machine.start(*OPTIONS, "--restarts", "0", "--", RECIPE)
    for starts in (1, 2, 3):
        wait_for(lambda: running(cloud))
        assert counted(cloud, "tpu_worker start") == starts
        looks = counted(cloud, "tpu_worker status")
        wait_for(lambda looks=looks: counted(cloud, "tpu_worker status") >= looks + 2)
        if starts < 3:
            for i in range(2):
                (cloud / f"pid{i}").unlink()
            os.killpg(int((cloud / "host0/.jaxllm-worker/pid").read_text()), signal.SIGKILL)
    end(cloud, 0, 0)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told


def test_a_request_that_fails_is_not_repeated(machine: Machine, cloud: Path):
    environment = machine.environment | {"QUEUE": "FAILED"}
    done = machine.run(*OPTIONS, "--", RECIPE, env=environment)
    assert done.returncode == 2
    assert "the request failed: gcloud compute tpus queued-resources describe a --zone=z says why" in done.stderr
    assert counted(cloud, "queued-resources create") == 1


@pytest.mark.parametrize(
    ("runs", "mounting"),
    [
        ("gs://c", ["--implicit-dirs", "--rename-dir-limit=1000000", "c", "/mnt/jaxllm"]),
        ("10.0.0.2:/c", ["mount", "-t", "nfs", "10.0.0.2:/c", "/mnt/jaxllm"]),
    ],
)
@pytest.mark.parametrize("mounted", [0, 1])
def test_the_place_of_the_runs_is_mounted_on_a_host(machine: Machine, cloud: Path, runs, mounting, mounted):
    """Also where an earlier run has mounted one, which may be another."""
    machine.put("mountpoint", f"exit {mounted}")
    for name in ("gcsfuse", "mount.nfs", "sudo"):
        machine.put(name, RECORDS)
    machine.put("jaxllm", "exit 0")
    assert machine.run(str(machine.checkout() / "launch/tpu_worker"), "start", runs, "0", RECIPE).returncode == 0
    assert ["mkdir", "-p", "/mnt/jaxllm"] in machine.records()
    assert mounting in machine.records()
    assert (["umount", "--lazy", "/mnt/jaxllm"] in machine.records()) == (mounted == 0)
    wait_for((machine.home / ".jaxllm-worker/status").exists)
