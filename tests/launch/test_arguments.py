"""Every word after `--` arrives unchanged, through all that lies between."""

import re
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import HOSTILE, RECIPE, RECORDS, without
from tests.launch.test_dry_run import REMOTE

TRAVELLED = "configs/pretrain/quickstart.py"


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a container's command: $(NAME) where it knows the name, and one dollar of two."""

    def replaced(match: re.Match) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)


def test_local(machine):
    done = machine.run("local", "--processes", "2", "--port", "23456", "--", RECIPE, *HOSTILE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    given = [["train", RECIPE, *HOSTILE, "--processes", "2", "--coordinator", "127.0.0.1:23456"] for _ in range(2)]
    expected = [[*words, "--process-id", str(i)] for i, words in enumerate(given)]
    assert sorted(machine.records(), key=lambda words: words[-1]) == expected


@pytest.mark.parametrize("value", ["yes", "no"])
def test_an_option_is_no_switch_whatever_its_value_was_before(machine, value):
    done = machine.run("slurm", "--name", value, "--name", "last", "--dry-run", "--dry-run", "--", RECIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--job-name=last " in done.stdout


def test_local_with_restarts(machine):
    words = ["--processes", "1", "--port", "23456", "--devices", "2", "--restarts", "1"]
    assert machine.run("local", *words, "--", RECIPE, *HOSTILE).returncode == 0
    assert machine.records()[0][: 2 + len(HOSTILE)] == ["train", RECIPE, *HOSTILE]


def test_slurm(machine):
    """Slurm hands the words behind the script to it, and srun those behind the program to that."""
    machine.put("sbatch", 'while [[ $1 = -* ]]; do shift; done; SLURM_JOB_ID=7 exec bash "$@"')
    machine.put("srun", 'while [[ $1 = -* ]]; do shift; done; exec "$@"')
    done = machine.run("slurm", "--gpus", "0", "--", RECIPE, *HOSTILE)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.records() == [["train", RECIPE, *HOSTILE]]


@pytest.mark.parametrize("kind", ["xpk", "kubectl"])
def test_gke(machine, kind):
    """Both hand a script to bash in the container; xpk within braces of its own."""
    if kind == "xpk":
        machine.put("xpk", 'printf %s "${@: -1}" >"$HOME/given"')
    else:
        machine.put("kubectl", 'cat >"$HOME/given"')
    assert machine.run(*REMOTE[kind], "--", RECIPE, *HOSTILE).returncode == 0
    given = (machine.home / "given").read_text()
    assert given.isascii()
    if kind == "xpk":
        command = ["bash", "-c", f"({given.removeprefix('--command=')}) & PID=$$!; wait $PID; exit $?\n"]
    else:
        job = yaml.safe_load(given)["spec"]["replicatedJobs"][0]["template"]["spec"]
        command = job["template"]["spec"]["containers"][0]["command"]
    variables = {"HOME": "wrong", "id": "wrong"}
    assert machine.run(*(expanded(word, variables) for word in command)).returncode == 0
    assert machine.records() == [["train", TRAVELLED, *HOSTILE, "--output", "/runs/a"]]


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("8x8", 4, 16), ("2x4", 8, 1), ("1x1", 1, 1), ("4x4x8", 4, 32)]
)
def test_a_job_takes_every_chip_of_its_topology(machine, topology, chips, hosts):
    machine.put("kubectl", 'cat >"$HOME/given"')
    options = [*without(REMOTE["kubectl"], "--topology"), "--topology", topology, "--chips", str(chips)]
    assert machine.run(*options, "--", RECIPE).returncode == 0
    manifest = yaml.safe_load((machine.home / "given").read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def strings(manifest) -> list[str]:
    """All that lie in a manifest."""
    if isinstance(manifest, dict):
        manifest = list(manifest.values())
    if isinstance(manifest, list):
        return [text for part in manifest for text in strings(part)]
    return [manifest] if isinstance(manifest, str) else []


@pytest.mark.parametrize(
    ("name", "place", "other"), [("null", "123", "1"), ("on", "gs://123", "1e3"), ("y", "gs://0x1", "2000-01-01")]
)
def test_what_yaml_would_read_as_something_else_stays_a_string(machine, name, place, other):
    machine.put("kubectl", 'cat >"$HOME/given"')
    values = {"name": name, "runs": place, "image": other, "accelerator": other, "account": other, "topology": "4x4"}
    options = [word for key, value in values.items() for word in (f"--{key}", value)]
    assert machine.run("gke", *options, "--", RECIPE).returncode == 0
    found = strings(yaml.safe_load((machine.home / "given").read_text()))
    for value in values.values():
        assert value.removeprefix("gs://") in found


def test_the_checkout_may_be_reached_by_a_link_and_by_a_relative_path(machine):
    """Where CDPATH is set, `cd` prints where it goes."""
    machine.put("sky", RECORDS)
    (machine.folder / "link").symlink_to(machine.checkout())
    launcher, *options = REMOTE["skypilot"]
    environment = machine.environment | {"CDPATH": str(machine.folder)}
    done = machine.run("bash", f"link/launch/{launcher}", *options, "--", f"link/{TRAVELLED}", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--env=TRAIN={TRAVELLED} --output /runs/a" in machine.records()[0]


@pytest.mark.parametrize("nodes", [1, 2])
def test_skypilot(machine, nodes):
    """SkyPilot sets the variables of --env, and runs the task's script with bash in a copy of the checkout."""
    machine.put("sky", RECORDS)
    launcher, *options = REMOTE["skypilot"]
    assert machine.run(launcher, *options, "--nodes", str(nodes), "--", RECIPE, *HOSTILE).returncode == 0
    [words] = machine.records()
    variables = dict(word.removeprefix("--env=").split("=", 1) for word in words if word.startswith("--env="))
    task = yaml.safe_load(Path(words[-1]).read_text())
    assert set(task["envs"]) == set(variables)
    sky = {"NUM_NODES": str(nodes), "NODE_RANK": "1", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    sky = {f"SKYPILOT_{name}": value for name, value in sky.items()}
    script = machine.run("bash", "-c", task["run"], cwd=machine.checkout(), env=machine.environment | variables | sky)
    assert (script.returncode, script.stderr) == (0, "")
    of_two = ["--processes", "2", "--process-id", "1", "--coordinator", "10.0.0.1:8476"]
    expected = ["train", TRAVELLED, *HOSTILE, "--output", "/runs/a", *(of_two if nodes == 2 else [])]
    assert machine.records()[1:] == [expected]
