"""One message, status 2, and nothing started."""

import pytest

from tests.launch.conftest import RECIPE, RECORDS, without
from tests.launch.test_dry_run import REMOTE

TOOLS = {"slurm": "sbatch", "tpu_pod": "gcloud", "xpk": "xpk", "kubectl": "kubectl", "skypilot": "sky"}
ALL = {"local": ["local"], **REMOTE}


@pytest.fixture(autouse=True)
def tools(machine):
    """All of them are there, and keep what they are asked for."""
    for tool in TOOLS.values():
        machine.put(tool, RECORDS)


def refusal(machine, *words: str) -> str:
    """The message of a launcher that starts nothing."""
    done = machine.run(*words)
    assert (done.returncode, done.stdout, machine.records()) == (2, "", [])
    name, message = done.stderr.removesuffix("\n").split(": ", 1)
    assert name == f"launch/{words[0]}"
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ALL)
def test_the_grammar_is_one(machine, kind):
    launcher, *options = ALL[kind]

    def say(*words: str) -> str:
        return refusal(machine, launcher, *options, *words)

    assert say("--nods", "2", "--", RECIPE).startswith("there is no option --nods; there are --")
    assert say("--a[$(id >&2)]", "2", "--", RECIPE).startswith("there is no option --a[$(id >&2)]; there are --")
    assert say("--restarts", "--", RECIPE) == "--restarts needs a value"
    assert say("--restarts=", "--", RECIPE) == "--restarts needs a value"
    assert say("--restarts") == "--restarts needs a value"
    assert say("--restarts", "many", "--", RECIPE) == "--restarts many: expected a whole number from 0 to 999999"
    assert say("--restarts", "-1", "--", RECIPE) == "--restarts -1: expected a whole number from 0 to 999999"
    assert say("--restarts", "08", "--", RECIPE) == "--restarts 08: expected a whole number from 0 to 999999"
    assert say("--dry-run=3", "--", RECIPE) == "--dry-run is a switch and takes no value"
    assert say(RECIPE).startswith(f"unexpected '{RECIPE}': options come first, then --, then the recipe")
    assert say("--") == say() == f"no recipe: launch/{launcher} [options] -- RECIPE [options of jaxllm train]"
    assert say("--", "no such.py") == "there is no recipe or run folder 'no such.py'"


@pytest.mark.parametrize("kind", REMOTE)
def test_a_tool_that_is_missing_is_named(machine, kind):
    (machine.bin / TOOLS[kind]).unlink()
    assert refusal(machine, *REMOTE[kind], "--", RECIPE).startswith(f"'{TOOLS[kind]}' is not installed; ")
    assert machine.run(*REMOTE[kind], "--dry-run", "--", RECIPE).returncode == 0


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_the_environment_must_be_active_where_the_launcher_runs_in_it(machine, kind):
    (machine.bin / "jaxllm").unlink()
    assert refusal(machine, *ALL[kind], "--", RECIPE).startswith("'jaxllm' is not installed; activate the environment")


@pytest.mark.parametrize("kind", ["tpu_pod", "xpk", "kubectl", "skypilot"])
def test_what_a_cloud_needs_is_asked_for(machine, kind):
    for name in ("--name", "--runs"):
        message = refusal(machine, *without(REMOTE[kind], name), "--", RECIPE)
        assert message == f"{name} is needed (launch/{REMOTE[kind][0]} --help)"
    message = refusal(machine, *REMOTE[kind], "--name", "Über mich", "--", RECIPE)
    assert message == "--name Über mich: expected at most 40 of a-z, 0-9 and -, a letter first"
    assert refusal(machine, *REMOTE[kind], "--runs", "$(id)", "--", RECIPE).startswith("--runs $(id): expected ")


@pytest.mark.parametrize("kind", ["tpu_pod", "xpk", "kubectl", "skypilot"])
def test_what_cannot_travel_is_refused(machine, kind):
    (machine.folder / "mine.py").touch()
    assert refusal(machine, *REMOTE[kind], "--", "mine.py").startswith("recipe 'mine.py' must lie in /")
    assert refusal(machine, *REMOTE[kind], "--", ".").startswith("'.' is no recipe; the command that began a run also")
    copy = machine.checkout()
    (copy / "runs").mkdir()
    (copy / "runs/mine.py").touch()
    launcher, *options = REMOTE[kind]
    done = machine.run(f"{copy}/launch/{launcher}", *options, "--", f"{copy}/runs/mine.py")
    assert done.returncode == 2
    assert "must lie outside of runs/, which does not travel" in done.stderr
    for words in (["--output", "here"], ["--output=here"]):
        message = refusal(machine, *REMOTE[kind], "--", RECIPE, *words)
        assert message.startswith("leave --output out: the run's folder is /")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local", "--processes", "0"], "--processes 0: expected a whole number from 1 to 999999"),
        (["local", "--devices", "x"], "--devices x: expected a whole number from 1 to 999999"),
        (["local", "--port", "0"], "--port 0: expected a whole number from 1 to 65535"),
        (["local", "--port", "65536"], "--port 65536: expected a whole number from 1 to 65535"),
        (["local", "--with", "x"], "--with is for launchers that start another program"),
        (["slurm", "--nodes", "0"], "--nodes 0: expected a whole number from 1 to 999999"),
        (["slurm", "--time", "soon"], "--time soon: expected minutes, or [days-]hours:minutes:seconds"),
        (["slurm", "--name", "a b"], "--name a b: expected letters, digits, ., _ and -"),
        ([*REMOTE["tpu_pod"], "--zone", "A"], "--zone A: expected a zone such as us-west4-a"),
        ([*REMOTE["tpu_pod"], "--runs", "gs://-c"], "--runs gs://-c: expected gs://BUCKET or HOST:/SHARE"),
        ([*REMOTE["kubectl"], "--runs", "-c"], "--runs -c: expected gs://BUCKET or the name of a volume claim"),
        ([*REMOTE["kubectl"], "--image", "a@name@"], "--image a@name@: expected the name of an image"),
        ([*REMOTE["kubectl"], "--image", "-a"], "--image -a: expected the name of an image"),
        ([*REMOTE["xpk"], "--topology", "4x4"], "--topology is for kubectl: with --cluster, give --type alone"),
        ([*REMOTE["kubectl"], "--type", "v6e-16"], "--type is for xpk, which needs --cluster"),
        ([*REMOTE["kubectl"], "--topology", "4"], "--topology 4: expected a topology such as 4x4"),
        ([*REMOTE["kubectl"], "--topology", "08x8"], "--topology 08x8: expected a topology such as 4x4"),
        ([*REMOTE["kubectl"], "--topology", "1x1"], "--chips 4: a topology of 1x1 is not made of nodes with 4 chips"),
        ([*REMOTE["kubectl"], "--chips", "3"], "--chips 3: a topology of 4x4 is not made of nodes with 3 chips"),
        ([*REMOTE["skypilot"], "--gpus", "8 H100"], "--gpus 8 H100: expected a kind and a number such as H100:8"),
    ],
)
def test_values_are_held_against_what_the_service_takes(machine, words, message):
    assert refusal(machine, *words, "--", RECIPE) == message
