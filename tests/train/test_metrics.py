import json
import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxllm.config import UserError
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.models.summary import flops_per_token
from jaxllm.train import metrics
from jaxllm.train.metrics import Journal, Meter, peak_flops, read_metrics


def events(folder):
    for path in sorted((folder / "events").iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_lines_are_written_at_once_and_as_events_and_what_is_not_finite_is_null(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(1, {"loss": 2.5, "grad_norm": math.nan, "mfu": None})
        [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line) == {"step": 1, "loss": 2.5, "grad_norm": None, "mfu": None}
        scalars = {v.tag: (e.step, v.simple_value) for e in events(tmp_path) for v in e.summary.value}
        assert scalars["loss"] == (1, 2.5)
        assert math.isnan(scalars["grad_norm"][1])
        assert "mfu" not in scalars


def test_lines_after_the_step_and_a_torn_last_one_are_dropped_and_events_hidden(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for step in (1, 2, 3):
            journal.write(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    with Journal(tmp_path, 2) as journal:
        journal.write(3, {"loss": 30})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [1, 3]


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "metrics.writing").symlink_to("/dev/full")  # which becomes metrics.jsonl
    told = pytest.raises(UserError, match=r"cannot write in the run folder .*No space left on device")
    with Journal(tmp_path, 0) as journal, told:
        journal.write(1, {"loss": 1.0})


def test_peaks_go_by_the_longest_name_that_a_device_kind_begins_with():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("cpu") is None


def test_speed_counts_steps_alone_time_left_counts_all_and_bits_follow_the_bytes_of_the_text(recipe, monkeypatch):
    loader = Loader(prepare_corpus(recipe.data, recipe.tokenizer), recipe.data, 8, 0)
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e6)
    meter = Meter(recipe, loader, steps=10)
    for _ in range(2):
        clock[0] += 1.0
        meter.step(100)
    clock[0] += 6.0
    meter.restart()
    values = {"loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-3, "skipped": 0}
    line = meter.line(values, tokens=200)
    assert line["tokens_per_second"] == 100
    assert line["mfu"] == pytest.approx(100 * flops_per_token(recipe.model, 32).total / 8e6)
    ratio = loader.corpus.train[0].bytes / loader.plans[0].pairs
    assert line["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / ratio)
    assert meter.seconds_left() == 8.0 / 2 * 8
    clock[0] += 0.5
    meter.step(100)
    assert meter.line(values, tokens=300)["tokens_per_second"] == 200
