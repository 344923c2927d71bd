import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxllm.cli.train import Options, _check_equal, _check_shared, run
from jaxllm.common.trees import flatten
from jaxllm.config import RunConfig
from jaxllm.train.params import load_run_params
from tests.together import together

WORDS = ["def", "class", "return", "self", "value", "name", "index", "for", "while", "None", "import"]

RECIPE = """
from jaxllm.config import *


def recipe() -> RunConfig:
    return RunConfig(
        name="tiny",
        model=TransformerConfig(
            vocab_size=320, width=16, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=32, max_positions=64
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="text", path={texts!r}),), sequence_length=32, validation_fraction=0.2
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        train=TrainConfig(steps=200, batch_size=4),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        eval=EvalConfig(sample_tokens=8),
        checkpoint=CheckpointConfig(every=50),
    )
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    texts = root / "texts"
    texts.mkdir()
    for i in range(20):
        choose = random.Random(i)
        lines = (" ".join(choose.choices(WORDS, k=5)) + f" = {choose.randrange(99)}\n" for _ in range(20))
        (texts / f"{i}.txt").write_text("".join(lines))
    path = root / "recipe.py"
    path.write_text(RECIPE.format(texts=str(texts)))
    return path


def start(recipe, *argv):
    """`jaxllm train` on one device, in a process of its own."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # the last one counts
    environment = {**os.environ, "XLA_FLAGS": flags, "JAXLLM_CACHE": str(recipe.parent / "cache")}
    program = "import sys; from jaxllm.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_run_that_sigterm_stopped_says_how_to_go_on_and_then_ends_as_if_it_never_was(recipe, tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    with start(recipe, recipe, "--output", folder) as process:
        for line in process.stdout:
            if line.startswith("step 10/200"):
                process.send_signal(signal.SIGTERM)
                break
        rest, errors = process.communicate()
    assert (process.returncode, errors.strip()) == (128 + signal.SIGTERM, "")
    stopped = re.search(r"stopped after step (\d+); to go on: jaxllm train (.*)\n$", rest)
    assert 10 <= int(stopped[1]) < 200
    assert stopped[2] == str(folder)

    for argv in ([folder, "--eval.every", "0"], [recipe, "--output", whole]):
        with start(recipe, *argv) as process:
            printed, errors = process.communicate()
        assert (process.returncode, errors.strip()) == (0, "")
    assert re.search(r"held out, all of it: \d\.\d+ bits/byte", printed)
    assert printed.count("sample of ") == 3
    runs = [flatten(load_run_params(f)[1]) for f in (folder, whole)]
    assert runs[0].keys() == runs[1].keys()
    for path in runs[0]:
        assert np.asarray(runs[0][path]).tobytes() == np.asarray(runs[1][path]).tobytes(), path

    with start(recipe, recipe, "--output", folder, "--seed", "7") as process:
        printed, errors = process.communicate()
    assert process.returncode == 2
    assert f"error: these changes to the run in '{folder}' change its result:\n  seed: 0 -> 7\n" in errors


def test_help_lists_the_options_of_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        run(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--step" in shown
    assert "--allow-change" in shown


def test_processes_that_were_started_otherwise_are_told_how():
    def check(processes):
        seeds = (0, 0, 1)
        _check_equal(RunConfig(seed=seeds[processes.index]), Options(), processes)

    for error in together(3, check):
        assert str(error).startswith("process 2 (host2) was started otherwise than process 0 (host0): seed: 0 -> 1; ")
    for error in together(2, lambda p: _check_equal(RunConfig(), Options(step=p.index), p)):
        assert "step: 0 -> 1; " in str(error)
    assert together(2, lambda p: _check_equal(RunConfig(), Options(), p)) == [None, None]


def test_a_run_folder_that_a_host_does_not_see_is_told_with_the_host(tmp_path):
    (tmp_path / "shared").mkdir()
    assert together(2, lambda p: _check_shared(tmp_path / "shared", p)) == [None, None]
    assert list((tmp_path / "shared").iterdir()) == []
    for error in together(2, lambda p: _check_shared(tmp_path / ("own" if p.index else "shared"), p)):
        assert str(error).startswith("process 1 (host1) does not see the run folder '")


def test_processes_that_contradict_each_other_are_one_message(recipe):
    with start(recipe, recipe, "--processes", "2", "--process-id", "2", "--coordinator", "127.0.0.1:1") as process:
        printed, errors = process.communicate()
    assert (process.returncode, printed) == (2, "")
    assert errors == "error: --process-id 2: of 2 processes the first is 0 and the last 1\n"


def test_a_mistake_is_told_before_the_other_processes_are_waited_for(recipe):
    where = ("--processes", "2", "--process-id", "1", "--coordinator", "nosuchhost.invalid:99")
    with start(recipe, recipe, *where, "--optimizer.bogus", "3", "--train.steps", "0") as process:
        try:
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed) == (2, "")
    assert errors.startswith("error: 2 mistakes in the configuration:\n  --optimizer.bogus: there is no such option; ")
    assert "train.steps = 0: must be at least 1" in errors
