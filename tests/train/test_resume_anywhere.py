"""A run goes on with other devices, another mesh and another number of processes: the same batches and losses."""

import shutil
import signal
from dataclasses import replace

import pytest

from jaxllm.config import MeshConfig
from jaxllm.train.metrics import read_metrics
from tests.train.started import Started


@pytest.fixture
def go_on(recipe, uninterrupted, hashes, tmp_path):
    """`go_on(name, mesh, processes, devices, first, stop)`: a part of the run in `tmp_path/run`, from batch `first`."""

    def start(name, mesh, processes, devices, first, stop=None):
        config = replace(recipe, output=str(tmp_path / "run"), mesh=mesh)
        more = {"stop": [processes - 1, stop]} if stop else {}
        ended = Started(config, tmp_path / name, processes, devices, **more).ended()
        assert {process.status for process in ended} == {128 + signal.SIGTERM if stop else 0}, ended
        made = {}
        for process in ended:
            for k, rows in process.rows.items():
                made.setdefault(k, {}).update(rows)
        wanted = range(first, stop or 12)
        assert {k: made[k] for k in wanted} == {k: hashes[k] for k in wanted}
        assert min(k for k in made if made[k]) == first
        return ended

    return start


def check(folder, uninterrupted):
    here, there = (
        {(line["step"], name): line[name] for line in read_metrics(f) for name in line if "loss" in name}
        for f in (folder, uninterrupted)
    )
    assert here.keys() == there.keys()
    for name, loss in there.items():
        assert here[name] == pytest.approx(loss, abs=1e-5), name


def at(uninterrupted, tmp_path, step):
    """A copy of the run, as if it had ended at that step."""
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def test_eight_devices_to_four_to_two_one_process_to_two_and_fsdp_to_tensor(go_on, uninterrupted, tmp_path):
    at(uninterrupted, tmp_path, 8)
    go_on("four", MeshConfig(fsdp=4), 1, 4, first=8, stop=9)
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    go_on("two", MeshConfig(tensor=2), 2, 1, first=step)
    check(tmp_path / "run", uninterrupted)


def test_from_one_process_to_four_and_back_where_tensor_spans_processes(go_on, uninterrupted, tmp_path, hashes):
    at(uninterrupted, tmp_path, 8)
    ended = go_on("four", MeshConfig(data=2, tensor=2), 4, 1, first=8, stop=9)
    rows = [set(process.rows[8]) for process in ended]
    assert rows == [{0, 1, 2, 3}, {0, 1, 2, 3}, {4, 5, 6, 7}, {4, 5, 6, 7}]
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    go_on("one", MeshConfig(fsdp=2), 1, 2, first=step)
    check(tmp_path / "run", uninterrupted)
