import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.cli import main as cli
from jaxllm.cli import plan
from jaxllm.config import UserError

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "pretrain" / "quickstart.py")
SCALE = str(ROOT / "configs" / "pretrain" / "llama2_7b.py")
CALL = "import sys; from jaxllm.cli.main import main; sys.exit(main())"
SMALL = ["--model.layers", "2", "--model.width", "64", "--model.ffn", "96", "--train.batch-size", "8"]


def planned(*argv):
    """`jaxllm plan ARGV` as a process that has set nothing of jax yet."""
    own = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.run([sys.executable, "-c", CALL, "plan", *argv], capture_output=True, text=True, env=own)


def test_cpu_devices_are_made_for_the_plan_and_neither_data_nor_tokenizer_are_read():
    missing = ["--data.sources.0.kind", "parquet", "--data.sources.0.path", "/nowhere/*.parquet"]
    ran = planned(
        QUICKSTART, "--topology", "cpu:6", *SMALL[:-1], "12", *missing, "--tokenizer.path", "/nowhere", "--json"
    )
    assert (ran.returncode, ran.stderr) == (0, "compiling the training step of 'quickstart' for cpu:6\n")
    found = json.loads(ran.stdout)
    assert (found["run"]["devices"], found["run"]["mesh"]["data"]) == (6, 6)
    assert found["memory"]["parameters"] > 0
    assert found["collectives"][0]["kind"] == "all-reduce"


def test_a_search_ranks_what_it_compiled():
    ran = planned(
        QUICKSTART, "--topology", "cpu:2", *SMALL, "--model.kv-heads", "1", "--search", "--tries", "2", "--json"
    )
    assert ran.returncode == 0
    assert [line.partition(":")[0] for line in ran.stderr.splitlines()[1:]] == [
        "compiling 1 of 2",
        "compiling 2 of 2, 0",
    ]
    found = json.loads(ran.stdout)
    assert len(found["ranked"]) + len(found["failed"]) == 2
    assert found["tried"] == found["not_compiled"] + 2


def test_the_help_tells_the_notation_of_topologies(capsys):
    with pytest.raises(SystemExit) as stop:
        plan.run(["--help"])
    assert stop.value.code == 0
    assert "2xv5e:16x16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([QUICKSTART], "--topology is missing: name a machine, such as v5e:16x16"),
        ([QUICKSTART, "--topology="], "--topology is missing: name a machine, such as v5e:16x16"),
        ([QUICKSTART, "--topology"], "--topology: expected a text, and nothing follows"),
        ([QUICKSTART, "--topology", "--search"], "--topology: expected a text, and nothing follows"),
        (
            [QUICKSTART, "--topology", "v5e:2x2", "--topology", "cpu:7"],
            "accumulate = 1 parts must be a multiple of mesh",
        ),
        ([QUICKSTART, "--topology", "cpu:100000"], "no such cpu. CPU devices are cpu:N, such as cpu:8, at most 1,024"),
        ([QUICKSTART, "--topology", "cpu:2", "--search", "--tries", "0"], "--tries 0: must be at least 1"),
        ([QUICKSTART, "--topology", "cpu:2", "--search", "--tries=-1"], "--tries -1: must be at least 1"),
        ([QUICKSTART, "--topology=v5e:3x3"], "--topology v5e:3x3: there is no such v5e. Slices of v5e are 1x1, 2x2"),
        ([QUICKSTART, "--topology", "cpu:7"], "train.batch_size = 16: each of the train.accumulate = 1 parts"),
        ([SCALE, "--topology", "v5e:16x16", "--mesh.fsdp", "100"], "makes 100 devices, and there are 256"),
        ([SCALE, "--topology", "v5e:16x16", "--topolgy", "x"], "--topolgy: there is no such option"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_compiled(argv, message, monkeypatch):
    monkeypatch.setattr("jaxllm.planning.topology.prepare", lambda target: pytest.fail("went on"))
    with pytest.raises(UserError) as error:
        plan.run(argv)
    assert message in str(error.value)


@pytest.mark.parametrize("topology", ["v5e:16x16", "h100:8"])
def test_a_compiler_that_is_missing_is_one_message_and_status_two(topology, monkeypatch, capsys):
    monkeypatch.setattr("jaxllm.planning.topology.importlib.util.find_spec", lambda name: None)
    batch = ["--train.batch-size", "256"]
    assert cli.main(["plan", QUICKSTART, "--topology", topology, *batch]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "pip install -e '.[" in err


@pytest.mark.parametrize("search", [[], ["--search", "--tries", "1"]])
def test_attention_that_the_machine_cannot_compute_is_one_message(search):
    ran = planned(QUICKSTART, "--topology", "cpu:2", *SMALL, "--train.attention", "cudnn", *search)
    assert (ran.returncode, ran.stdout) == (2, "")
    *told, error = ran.stderr.splitlines()
    assert error.startswith("error: ")
    assert all(line.startswith("compiling") or "may fit" in line for line in told)
    assert "train.attention = 'cudnn': cuDNN runs on GPU, and this is cpu; 'auto' or 'xla' would do" in error


def test_a_plan_that_does_not_fit_is_status_one(monkeypatch, capsys):
    monkeypatch.setattr("jaxllm.planning.topology.prepare", lambda target: None)
    monkeypatch.setattr("jaxllm.planning.compilation.compile_step", lambda config, target: None)
    for fits, status in ((False, 1), (True, 0), (None, 0)):
        plan_of = {"fits": fits}
        monkeypatch.setattr("jaxllm.planning.report.describe", lambda outcome, target, plan_of=plan_of: plan_of)
        assert plan.run([SCALE, "--topology", "v5e:16x16", "--json"]) == status
    assert capsys.readouterr().out.count("fits") == 3


def test_a_real_step_compiles_for_tpu_without_one():
    pytest.importorskip("libtpu")
    sizes = ["--model.layers", "2", "--train.batch-size", "32", "--optimizer.kind", "adamw"]
    ran = planned(QUICKSTART, "--topology", "2xv5e:2x2", *sizes, "--mesh.data", "2", "--mesh.fsdp", "4", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["fits"] is True
    assert {"ICI", "DCN"} <= {row["link"] for row in found["collectives"]}
    assert found["run"]["compute_dtype"] == "bfloat16"
    assert found["prediction"]["bound"] in ("compute", "memory", "ICI", "DCN")
