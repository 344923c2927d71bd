"""Real processes on this machine, joined by gloo."""

import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from jaxllm.common.trees import flatten
from jaxllm.config import MeshConfig, PromptConfig, TuningConfig
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.metrics import read_metrics
from jaxllm.train.params import load_trained
from tests.train.started import Started


@pytest.fixture(scope="module")
def config(recipe):
    """The recipe's run for 4 devices."""
    return replace(recipe, mesh=MeshConfig(data=2, fsdp=2))


@pytest.fixture(scope="module")
def whole(config, uninterrupted, tmp_path_factory):
    """The run in one go, by two processes of two devices: its folder, and how they ended."""
    root = tmp_path_factory.mktemp("whole")
    config = replace(config, output=str(root / "run"), data=replace(config.data, cache_dir=str(root / "cache")))
    prompted = replace(config, eval=replace(config.eval, prompts=("def ",), sample_tokens=4), log_every=1)
    return root / "run", Started(prompted, root / "two", processes=2, devices=2).ended()


def losses(folder):
    return {(line["step"], name): line[name] for line in read_metrics(folder) for name in line if "loss" in name}


def test_two_processes_train_to_the_losses_of_one(whole, uninterrupted):
    folder, ended = whole
    assert [process.status for process in ended] == [0, 0], ended
    here, there = losses(folder), losses(uninterrupted)
    assert here.keys() >= there.keys()
    assert {(12, "final_loss"), (4, "held_out_loss")} <= there.keys()
    for name, loss in there.items():
        assert here[name] == pytest.approx(loss, abs=1e-5), name


def test_learned_keys_begin_as_the_bases_on_two_processes_as_on_one(config, uninterrupted, tmp_path):
    tuning = TuningConfig(method="prefix", prompt=PromptConfig(length=3))
    train = replace(config.train, steps=2, ema_decay=None)
    config = replace(config, base=str(uninterrupted), tuning=tuning, train=train, mesh=MeshConfig(data=1, fsdp=4))
    runs = []
    for processes in (1, 2):
        run = replace(config, output=str(tmp_path / f"run{processes}"))
        ended = Started(run, tmp_path / f"by{processes}", processes, devices=4 // processes).ended()
        assert [process.status for process in ended] == [0] * processes, ended
        runs.append(flatten(load_trained(tmp_path / f"run{processes}")[1]))
    one, two = runs
    for path, x in one.items():
        np.testing.assert_allclose(two[path], x, atol=1e-5, err_msg=path)


def test_each_process_makes_only_the_rows_of_its_devices_and_together_they_make_every_batch(whole, hashes):
    first, second = whole[1]
    for k, batch in hashes.items():
        assert first.rows[k] == {b: batch[b] for b in range(4)}
        assert second.rows[k] == {b: batch[b] for b in range(4, 8)}


def test_one_process_reads_the_sources_writes_and_speaks(whole):
    folder, (first, second) = whole
    assert (first.prepared, second.prepared) == (1, 0)
    assert "2 processes with 4 devices" in first.out
    assert "step 12/12  loss" in first.out
    assert "sample of 'def ':" in first.out
    assert "Gloo" not in first.out
    assert (first.err.strip(), second.out, second.err.strip()) == ("", "", "")
    assert len(list((folder / "events").iterdir())) == 1


def test_both_processes_write_the_checkpoint(whole):
    folder, _ = whole
    assert Checkpoints(folder).steps() == [8, 12]
    writers = [path.name for path in (folder / "checkpoints" / "12" / "state").glob("ocdbt.process_*")]
    assert sorted(writers) == ["ocdbt.process_0", "ocdbt.process_1"]


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_they_go_on_to_the_same_bits(
    config, whole, arrays, recipe, hashes, tmp_path
):
    config = replace(config, output=str(tmp_path / "run"))
    ended = Started(config, tmp_path / "stopped", processes=2, devices=2, stop=[1, 5]).ended()
    assert [process.status for process in ended] == [128 + signal.SIGTERM] * 2, ended
    [*_, step] = Checkpoints(tmp_path / "run").steps()
    assert 5 <= step < 12
    assert f"stopped after step {step}; to go on: jaxllm train {tmp_path / 'run'}" in ended[0].out

    resumed = Started(config, tmp_path / "resumed", processes=2, devices=2).ended()
    assert [process.status for process in resumed] == [0, 0], resumed
    assert min(resumed[0].rows) == step
    for process in (*ended, *resumed):
        assert all(hashes[k].items() >= rows.items() for k, rows in process.rows.items() if k < 12)
    here, there = arrays(tmp_path / "run", recipe, 12), arrays(whole[0], recipe, 12)
    assert {path: x.tobytes() for path, x in here.items()} == {path: x.tobytes() for path, x in there.items()}
    kept = {line["step"] for line in read_metrics(tmp_path / "run")}
    assert kept >= {1, 3, 6, 9, 12}


def test_a_process_that_is_killed_ends_the_other_soon_with_its_name(config, tmp_path):
    config = replace(config, output=str(tmp_path / "run"), mesh=MeshConfig(data=2), log_every=1)
    config = replace(config, train=replace(config.train, steps=100_000), eval=replace(config.eval, every=0))
    started = Started(config, tmp_path / "two", processes=2, devices=1)
    started.wait_for("step 3/100000")
    began = time.monotonic()
    started.all[1].kill()
    first, second = started.ended(60)
    assert time.monotonic() - began < 60
    assert (first.status, second.status) == (3, -signal.SIGKILL)
    told, how = first.err.strip().splitlines()
    assert re.fullmatch(r"error: process 1 \(.+\) has died, or its host has not answered for 30 s", told)
    assert how == "this process ends with it; what was saved is whole: start all processes again"


def test_a_part_of_a_checkpoint_that_cannot_be_written_ends_all(config, tmp_path):
    config = replace(config, output=str(tmp_path / "run"), mesh=MeshConfig(data=2), log_every=1)
    first, second = Started(config, tmp_path / "two", processes=2, devices=1, unwritable=1).ended(120)
    assert (first.status, second.status) == (3, 2)
    told = f"cannot write the checkpoint of step 4 in '{tmp_path / 'run' / 'checkpoints'}': No such file or directory; "
    assert second.err.strip().startswith(f"error: {told}")
    assert first.err.strip().startswith("error: process 1 (")
    assert f" failed: {told}" in first.err
    assert Checkpoints(tmp_path / "run").steps() == []


def test_an_error_of_one_process_ends_the_other_and_is_told_by_both(config, tmp_path):
    config = replace(config, output=str(tmp_path / "run"), mesh=MeshConfig(data=2), log_every=1)
    first, second = Started(config, tmp_path / "two", processes=2, devices=1, fail=[1, 6]).ended(120)
    assert (first.status, second.status) == (3, 1)
    assert "the disk of a test" in second.err
    assert first.err.strip().startswith("error: process 1 (")
    assert "failed: OSError: [Errno 5] Input/output error: 'the disk of a test'\n" in first.err
