"""What is told of a mesh before anything is made."""

import re
from dataclasses import replace

import pytest

from jaxllm.config import LoraConfig, MeshConfig, RunConfig, TrainConfig, TuningConfig
from jaxllm.models.presets import LLAMA2_7B
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
        (MeshConfig(data=8, zero_stage=0), "a larger mesh.fsdp in the place of mesh.data, with mesh.zero_stage = 1,"),
        (MeshConfig(data=8, zero_stage=2), "a larger mesh.fsdp in the place of mesh.data"),
    ],
    ids=str,
)
def test_the_remedy_names_what_leaves_the_parameter_whole(mesh, remedy):
    config = RunConfig(model=LLAMA2_7B, mesh=mesh)
    found = replicated(config, mesh_sizes(config, 8), "tpu")
    assert found.endswith(f"; {remedy} would cut it"), found


def test_of_what_an_axis_cannot_cut_another_is_named():
    tuning = TuningConfig(method="lora", lora=LoraConfig(rank=512))
    config = RunConfig(base="base", model=LLAMA2_7B, tuning=tuning, mesh=MeshConfig(data=1, fsdp=1024))
    found = replicated(config, mesh_sizes(config, 1024), "tpu")
    assert re.search(
        r"the optimizer of 'layers/\w+/\w+/lora_b' .*; a larger mesh.tensor in the place of mesh.fsdp", found
    ), found
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
    tuning, train = TuningConfig(method="lora", base_dtype="int8"), TrainConfig(batch_size=128)
    config = RunConfig(base="base", model=LLAMA2_7B, tuning=tuning, train=train)
    found = list(mesh_mistakes(replace(config, mesh=MeshConfig(data=1, fsdp=128)), 128))
    assert found == [
        "tuning.base_dtype = 'int8': the mesh cuts the last axis of 'layers/attention/output/kernel' and 1 more into "
        "parts of 32 numbers, which hold no whole blocks of 64; 'bfloat16' would do, or fewer parts"
    ]
    for mesh in (MeshConfig(data=2, fsdp=64), MeshConfig(data=1, fsdp=128, zero_stage=2)):
        assert not list(mesh_mistakes(replace(config, mesh=mesh), 128))
    bfloat16 = replace(config, tuning=replace(config.tuning, base_dtype="bfloat16"))
    assert not list(mesh_mistakes(replace(bfloat16, mesh=MeshConfig(data=1, fsdp=128)), 128))
