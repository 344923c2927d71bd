from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxllm.config import MeshConfig, RunConfig, UserError
from jaxllm.models.summary import memory
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train import fit

RUN = RunConfig()
STATE = memory(RUN).total


def check(config: RunConfig = RUN, **mesh: int) -> None:
    fit.check_fits(config, make_mesh(MeshConfig(**mesh)))


def test_a_model_larger_than_the_machine_is_told_with_both_sizes():
    large = replace(RUN, model=replace(RUN.model, positions="learned", max_positions=2 * 10**9))
    with pytest.raises(UserError, match=r"need 61,\d+\.\d GiB and this machine has \d+\.\d GiB; .* mesh\.fsdp"):
        check(large, data=8)


def test_replicas_count_each_and_shards_once(monkeypatch):
    monkeypatch.setattr(fit, "_machine_memory", lambda: 3 * STATE)
    check(data=1, fsdp=8)
    check(data=2, tensor=4)
    with pytest.raises(UserError, match="does not fit"):
        check(data=8)


def test_a_lower_stage_needs_room_for_what_it_does_not_cut(monkeypatch):
    monkeypatch.setattr(fit, "_machine_memory", lambda: 3 * STATE)
    for stage, fits in ((0, False), (1, False), (2, True), (3, True)):  # 8, 4.5, 2.75 and 1 times the state
        config = replace(RUN, mesh=MeshConfig(data=1, fsdp=8, zero_stage=stage))
        if fits:
            fit.check_fits(config, make_mesh(config.mesh))
        else:
            with pytest.raises(UserError, match=rf"mesh\.fsdp \(with mesh\.zero_stage = {stage} not all of it is cut"):
                fit.check_fits(config, make_mesh(config.mesh))


def test_the_average_counts(monkeypatch):
    monkeypatch.setattr(fit, "_machine_memory", lambda: STATE)
    check(fsdp=8, data=1)
    with pytest.raises(UserError, match=r"does not fit.* counts its parts\)$"):
        check(replace(RUN, train=replace(RUN.train, ema_decay=0.99)), fsdp=8, data=1)


def accelerators(shape: dict[str, int], stats: dict[str, int] | None) -> Any:
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    devices = np.full(tuple(shape.values()), device)
    return SimpleNamespace(shape=shape, devices=devices, local_devices=list(devices.flat))


def test_an_accelerator_holds_its_part_alone():
    fit.check_fits(RUN, accelerators({"data": 4, "fsdp": 2, "tensor": 2}, {"bytes_limit": STATE // 4}))
    fit.check_fits(RUN, accelerators({"data": 1, "fsdp": 1, "tensor": 1}, None))
    with pytest.raises(UserError, match=r"and each device has \d+\.\d GiB; .* or cut it over more devices"):
        fit.check_fits(RUN, accelerators({"data": 4, "fsdp": 2, "tensor": 1}, {"bytes_limit": STATE // 4}))


def test_an_offloaded_optimizer_takes_no_room_on_an_accelerator(monkeypatch):
    offloaded = replace(RUN, train=replace(RUN.train, offload_optimizer=True))
    monkeypatch.setattr(fit, "_device_memory", lambda mesh: STATE // 2)
    one = accelerators({"data": 1, "fsdp": 1, "tensor": 1}, None)
    with pytest.raises(UserError, match=r"parameters, gradients and adamw state .*, or .* --train\.offload-optimizer$"):
        fit.check_fits(RUN, one)
    fit.check_fits(offloaded, one)
    monkeypatch.setattr(fit, "_device_memory", lambda mesh: STATE // 2 - 1)
    for config, held in ((RUN, "parameters, gradients and adamw state"), (offloaded, "parameters and gradients")):
        with pytest.raises(UserError, match=rf"its {held} need .* with mesh\.fsdp$"):
            fit.check_fits(config, one)


def test_an_offloaded_optimizer_stays_in_the_memory_of_a_machine_without_accelerators(monkeypatch):
    offloaded = replace(RUN, train=replace(RUN.train, offload_optimizer=True))
    monkeypatch.setattr(fit, "_machine_memory", lambda: STATE - 1)
    with pytest.raises(UserError, match=r"parameters, gradients and adamw state .* counts its parts\)$"):
        check(offloaded, data=1, fsdp=8)


@pytest.mark.parametrize(
    ("heads", "tokens", "reason"),
    [
        (64, 512, None),
        (60, 512, r"heads of 60 .* 8; 'auto' or 'xla' would do"),
        (256, 512, r"heads of 256 .* 128; 'auto' or 'xla' would do"),
        (64, 511, r"rows of 511 .* even; 'auto' or 'xla' would do"),
    ],
)
def test_an_attention_beyond_cudnn_is_refused_in_one_line(heads, tokens, reason):
    config = replace(
        RUN,
        model=replace(RUN.model, head_dim=heads),
        data=replace(RUN.data, sequence_length=tokens),
        train=replace(RUN.train, attention="cudnn", compute_dtype="bfloat16"),
    )
    mesh = accelerators({"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}, None)
    if reason is None:
        fit.check_attention(config, mesh)
    else:
        with pytest.raises(UserError, match=rf"^train\.attention = 'cudnn': {reason}$"):
            fit.check_attention(config, mesh)


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/", {"memory.max": "5000"}, [5000]),
        ("0::/a/b", {"memory.max": "max", "a/memory.max": "7000", "a/b/memory.max": "9000"}, [9000, 7000]),
        ("0::/elsewhere", {"memory.max": "5000"}, [5000]),
        ("4:memory:/a\n0::/", {"memory/memory.limit_in_bytes": "8000"}, [8000]),
        ("4:cpu:/a", {"memory.max": "5000"}, []),
        (None, {}, []),
    ],
)
def test_the_limits_of_a_container_are_read(tmp_path, group, limits, expected):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    if group is not None:
        (tmp_path / "proc" / "self" / "cgroup").write_text(f"{group}\n")
    for name, text in limits.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert list(fit._container_limits(tmp_path)) == expected
