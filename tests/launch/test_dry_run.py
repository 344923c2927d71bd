"""What the launchers print, against files. The first line of a file is the command, the rest is its output."""

import shlex
from pathlib import Path

import pytest

from tests.launch.conftest import HOSTILE, RECIPE, RECORDS, ROOT

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
LAUNCHERS = ["local", "slurm", "tpu_pod", "gke", "skypilot"]

REMOTE = {
    "slurm": ["slurm", "--nodes", "2"],
    "tpu_pod": ["tpu_pod", "--name", "a", "--zone", "b", "--type", "v6e-16", "--runs", "gs://c"],
    "xpk": ["gke", "--name", "a", "--image", "b", "--runs", "c", "--cluster", "d", "--type", "v6e-16"],
    "kubectl": ["gke", "--name", "a", "--image", "b", "--runs", "c", "--accelerator", "d", "--topology", "4x4"],
    "skypilot": ["skypilot", "--name", "a", "--runs", "gs://c"],
}


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_what_would_run_is_printed(machine, file):
    command, _, expected = file.read_text().partition("\n")
    launcher, *words = shlex.split(command.removeprefix("$ launch/"))
    done = machine.run(launcher, *words, cwd=ROOT)
    printed = done.stdout.replace(str(ROOT), "CHECKOUT").replace(str(machine.folder), "TMPDIR")
    assert (done.returncode, done.stderr, printed) == (0, "", expected)
    assert machine.records() == []


def test_every_launcher_has_a_golden_file():
    assert {file.stem.partition("-")[0] for file in GOLDEN} == set(LAUNCHERS)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_readme_has_a_command_of_each_launcher_and_it_works(machine, launcher):
    lines = (ROOT / "README.md").read_text().replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith(f"launch/{launcher} ")]
    assert commands
    for command in commands:
        assert "--dry-run" not in command
        words = shlex.split(command, comments=True)[1:]
        done = machine.run(launcher, "--dry-run", *words, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_output_in_the_readme_is_what_is_printed():
    assert (GOLDEN[0].parent / "slurm.txt").read_text() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_explains_every_option(machine, launcher):
    done = machine.run(launcher, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    unknown = machine.run(launcher, "--nonsense", "1", "--", RECIPE).stderr
    options = [word for word in unknown.partition("there are ")[2].split() if word != "--with" or launcher != "local"]
    assert "--dry-run" in options
    assert [option for option in options if f"  {option} " not in done.stdout] == []


@pytest.mark.parametrize("tool", ["slurm", "xpk", "kubectl", "skypilot"])
def test_what_is_printed_does_the_same_in_a_shell(machine, tool):
    program = {"slurm": "sbatch", "skypilot": "sky"}.get(tool, tool)
    machine.put(program, RECORDS if tool != "kubectl" else RECORDS + 'cat >"$RECORDS/stdin"')
    launcher, *options = REMOTE[tool]
    words = ["--", RECIPE, *HOSTILE]
    assert machine.run(launcher, *options, *words).returncode == 0
    ran = machine.records()
    for file in (machine.folder / "records").iterdir():
        file.unlink()
    printed = machine.run(launcher, *options, "--dry-run", *words).stdout
    assert machine.run("bash", "-c", printed).returncode == 0
    assert machine.records() == ran
