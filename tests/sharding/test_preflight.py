"""What is told of a mesh before anything is made."""

import re
from dataclasses import replace

import pytest

from jaxllm.config import LoraConfig, MeshConfig, RunConfig, TrainConfig, TuningConfig
from jaxllm.models.presets import LLAMA2_7B
from jaxllm.sharding import preflight
from jaxllm.sharding.axes import RULES
from jaxllm.sharding.preflight import mesh_mistakes, mesh_sizes, parameter_mistakes, replicated

CUT = RunConfig(mesh=MeshConfig(data=1, fsdp=2, tensor=4))


def test_a_parameter_with_an_axis_that_no_rule_knows_is_named():
    rules = {letter: axis for letter, axis in RULES.items() if letter != "F"}
    lines = list(parameter_mistakes(CUT, 8, rules))
    assert len(lines) == 3
    assert lines[0].startswith("parameter 'layers/mlp/gate/kernel': no rule for the logical axes ['F']")


def test_a_parameter_with_two_axes_on_one_mesh_axis_is_named():
    lines = list(parameter_mistakes(CUT, 8, {**RULES, "H": "tensor"}))
    assert lines[0].startswith("parameter 'layers/attention/query/kernel': logical axes ('L', 'D', 'N', 'H') put two")


def test_minus_one_stands_for_what_is_left():
    config = RunConfig(mesh=MeshConfig(data=2, fsdp=-1, tensor=2))
    assert mesh_sizes(config, 8) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert mesh_sizes(config, None)["fsdp"] == 1


@pytest.mark.parametrize(
    ("mesh", "warning"),
    [
        (
            MeshConfig(data=8),
            r"holds 87\.9 GiB more .* mesh of data 8 x .*: .* are the optimizer of '.*mlp",
        ),
        (MeshConfig(data=1, fsdp=8), None),
        (
            MeshConfig(data=1, fsdp=8, zero_stage=2),
            r"holds 22\.0 GiB more .*zero_stage = 2: .* the parameters of",
        ),
        (MeshConfig(data=2, fsdp=4), r"holds 12\.6 GiB more .*'layers/mlp/gate/kernel' \(L 32, D 4096, F 11008\)"),
    ],
    ids=str,
)
def test_bytes_that_stay_replicated_are_told_with_the_largest_parameter(mesh, warning):
    config = replace(RunConfig(), model=LLAMA2_7B, mesh=mesh)
    found = replicated(config, mesh_sizes(config, 8), "tpu")
    if warning is None:
        assert found is None
    else:
        assert re.search(warning, found), found


@pytest.mark.parametrize(
    ("mesh", "remedy"),
    [
        (MeshConfig(data=8), "a larger mesh.fsdp in the place of mesh.data"),
        (MeshConfig(data=1, sequence=8), "a larger mesh.fsdp in the place of mesh.sequence"),
        (MeshConfig(data=2, sequence=4), "a larger mesh.fsdp in the place of mesh.data or mesh.sequence"),
        (MeshConfig(data=2, sequence=2, tensor=2), "a larger mesh.fsdp in the place of mesh.data or mesh.sequence"),
        (MeshConfig(data=1, fsdp=8, zero_stage=2), "mesh.zero_stage = 3"),
        (MeshConfig(data=1, fsdp=8, zero_stage=0), "mesh.zero_stage = 1"),
        (MeshConfig(data=8, zero_stage=0), "a larger mesh.fsdp in the place of mesh.data and mesh.zero_stage = 1"),
        (MeshConfig(data=8, zero_stage=2), "a larger mesh.fsdp in the place of mesh.data"),
    ],
    ids=str,
)
def test_the_remedy_names_what_leaves_the_parameter_whole(mesh, remedy):
    config = RunConfig(model=LLAMA2_7B, mesh=mesh)
    found = replicated(config, mesh_sizes(config, 8), "tpu")
    assert found.endswith(f"; {remedy} would cut it"), found


def test_of_what_an_axis_does_not_divide_a_smaller_one_is_named():
    tuning = TuningConfig(method="lora", lora=LoraConfig(rank=512))
    config = RunConfig(base="base", model=LLAMA2_7B, tuning=tuning, mesh=MeshConfig(data=1, fsdp=1024))
    found = replicated(config, mesh_sizes(config, 1024), "tpu")
    assert re.search(r"the optimizer of '.*/lora_b' .*; mesh.fsdp = 512 and mesh.data = 2 would cut it", found), found
    few = replace(config, mesh=MeshConfig(data=1, fsdp=128))
    assert replicated(few, mesh_sizes(few, 128), "tpu") is None


def test_a_small_model_may_be_replicated_without_a_word():
    assert replicated(RunConfig(), mesh_sizes(RunConfig(), 8), "tpu") is None


def test_an_offloaded_optimizer_is_held_by_the_host():
    config = RunConfig(model=LLAMA2_7B, mesh=MeshConfig(data=8), train=TrainConfig(offload_optimizer=True))
    sizes = mesh_sizes(config, 8)
    found = replicated(config, sizes, "tpu")
    assert re.search(r"holds 43\.9 GiB more .* are the parameters of", found), found
    assert re.search(r"holds 87\.9 GiB more .* are the optimizer of", replicated(config, sizes, "cpu"))


def test_blocks_of_quantised_numbers_are_not_cut():
    tuning, train = TuningConfig(method="lora", base_dtype="int8"), TrainConfig(batch_size=256)
    config = RunConfig(base="base", model=LLAMA2_7B, tuning=tuning, train=train)

    def mistakes(base_dtype="int8", devices=128, **sizes):
        asked = replace(config, tuning=replace(tuning, base_dtype=base_dtype), mesh=MeshConfig(**sizes))
        return list(mesh_mistakes(asked, devices))

    assert mistakes(data=1, fsdp=128) == [
        "tuning.base_dtype = 'int8': mesh.fsdp = 128 cuts blocks of 64 numbers, which share a scale, at the last axis, "
        "4096 long, of parameter 'layers/attention/output/kernel' and 1 more; mesh.fsdp = 64 with mesh.data = -1, or "
        "mesh.zero_stage = 2, or tuning.base_dtype = 'bfloat16' would do"
    ]
    assert mistakes(data=1, fsdp=128, devices=None) == mistakes(data=1, fsdp=128)
    [line] = mistakes(data=4, tensor=32)
    assert "mesh.tensor = 32 cuts blocks of 64 numbers" in line
    assert line.endswith("; mesh.tensor = 4 with mesh.data = -1, or tuning.base_dtype = 'bfloat16' would do")
    assert mistakes(data=1, fsdp=32, tensor=4) == []
    assert [line.partition("; ")[2] for line in mistakes("nf4", data=1, fsdp=128, tensor=8, devices=1024)] == [
        "mesh.fsdp = 64 with mesh.data = -1, or mesh.zero_stage = 2, or tuning.base_dtype = 'bfloat16' would do",
        "mesh.tensor = 4 with mesh.data = -1, or tuning.base_dtype = 'bfloat16' would do",
    ]
    assert mistakes(data=2, fsdp=64) == mistakes(data=1, fsdp=128, zero_stage=2) == mistakes("bfloat16", fsdp=128) == []


@pytest.mark.parametrize(
    ("mesh", "changed", "remedy"),
    [
        (MeshConfig(data=1, fsdp=128, zero_stage=2), {"fsdp": 64, "data": 2, "zero_stage": 3}, None),
        (MeshConfig(data=1, fsdp=64, zero_stage=2), {"zero_stage": 3}, None),
        (
            MeshConfig(data=2, fsdp=64),
            {},
            "a larger mesh.fsdp in the place of mesh.data and tuning.base_dtype = 'bfloat16'",
        ),
    ],
    ids=str,
)
def test_what_would_cut_more_cuts_no_blocks(mesh, changed, remedy, monkeypatch):
    monkeypatch.setattr(preflight, "NOTICEABLE", 1 << 24)
    tuning, train = TuningConfig(method="lora", base_dtype="int8"), TrainConfig(batch_size=128)
    config = RunConfig(base="base", model=LLAMA2_7B, tuning=tuning, train=train, mesh=mesh)
    devices = mesh.data * mesh.fsdp
    remedy = remedy or " and ".join(f"mesh.{axis} = {size}" for axis, size in changed.items())
    found = replicated(config, mesh_sizes(config, devices), "tpu")
    assert "are the frozen numbers of 'layers/mlp" in found
    assert found.endswith(f"; {remedy} would cut it"), found
    assert not list(mesh_mistakes(replace(config, mesh=replace(mesh, **changed)), devices))


@pytest.mark.parametrize("sizes", [{"experts": -1}, {"architecture": "encoder_decoder", "encoder_layers": -1}], ids=str)
def test_sizes_that_are_told_of_elsewhere_are_no_crash(sizes):
    tuning = TuningConfig(method="lora", base_dtype="int8")
    config = RunConfig(base="base", model=replace(LLAMA2_7B, **sizes), tuning=tuning, mesh=MeshConfig(data=1, fsdp=8))
    assert not any("base_dtype" in line for line in mesh_mistakes(config, 8))
