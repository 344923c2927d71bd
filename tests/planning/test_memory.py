"""Memory by group against exact sums."""

import dataclasses

import jax
import pytest

from jaxllm.config import LoraConfig, MeshConfig, TuningConfig
from jaxllm.models.table import parameter_table
from jaxllm.planning.compilation import Allocation, TooLarge, compile_step
from jaxllm.planning.memory import device_bytes, gradient_bytes, largest, memory_of, refused, short_name, state_tensors
from jaxllm.planning.text import parse
from jaxllm.planning.topology import target
from jaxllm.sharding.axes import cuts
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.state import abstract_state


def sizes(config):
    """Parameters that can be cut, and those that cannot."""
    leaves = parameter_table(config.model).values()
    cut = sum(leaf.size for leaf in leaves if ("fsdp",) in cuts(leaf.axes))
    return cut, sum(leaf.size for leaf in leaves) - cut


def test_the_state_is_cut_as_the_rules_say(compiled, config):
    cut, whole = sizes(config)
    parameters = 4 * (cut // 4 + whole)
    found = memory_of(compiled)
    assert found.parameters == found.gradients == parameters
    assert found.optimizer == 2 * parameters + 4 * 2  # two moments and two counters
    assert found.ema == found.code == 0
    assert found.state == 3 * parameters + 8


def test_an_adapter_has_the_gradients_and_the_optimizers_state_and_its_base_is_kept(compiled, config):
    tuning = TuningConfig(method="lora", lora=LoraConfig(rank=1), base_dtype="bfloat16")
    outcome = compile_step(dataclasses.replace(config, tuning=tuning), target("cpu:8"))
    found, base = memory_of(outcome), memory_of(compiled).parameters
    assert 0 < found.parameters == found.gradients < base / 2
    assert found.optimizer == 2 * found.parameters + 4 * 2
    assert base / 2 <= found.frozen < 1.1 * base / 2  # norms stay in float32


@pytest.mark.parametrize(("stage", "parts"), [(0, 1), (1, 1), (2, 4), (3, 4)])
def test_gradients_are_cut_from_stage_two_on(config, stage, parts):
    run = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=4, zero_stage=stage))
    cut, whole = sizes(run)
    found = gradient_bytes(run, abstract_state(run, make_mesh(run.mesh)))
    assert found == 4 * (cut // parts + whole)


def test_the_groups_add_up_to_the_compilers_sizes(compiled):
    found, sizes = memory_of(compiled), compiled.sizes
    assert found.state + found.batch_and_padding == sizes.arguments
    assert found.gradients + found.activations == sizes.temporary + sizes.results
    assert found.peak == sizes.peak == sizes.arguments + sizes.temporary + sizes.results


def test_what_lies_on_the_host_is_not_counted_on_the_device(config, compiled):
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, offload_optimizer=True))
    state = abstract_state(run, make_mesh(run.mesh))
    found = memory_of(compiled._replace(state=state, sizes=compiled.sizes._replace(host=4096)))
    counters = 4 * sum(leaf.ndim == 0 for leaf in jax.tree.leaves(state.opt_state))
    assert (found.optimizer, found.host) == (counters, 4096)
    assert not [t for t in state_tensors(state) if t.name.startswith("opt_state/mu")]


def test_bytes_of_a_tree_are_those_of_one_device(compiled):
    arrays = [x for x in jax.tree.leaves(compiled.state.params) if x.ndim == 2 and x.shape[0] == 64]
    assert device_bytes(arrays) == 64 * 32 * 4 // 4


def test_the_largest_tensors_are_named_by_path_or_by_operation(compiled):
    found = largest(compiled)
    assert len(found) == 10
    assert [t.bytes for t in found] == sorted((t.bytes for t in found), reverse=True)
    everything = largest(compiled, most=1000)
    assert {"params/layers/mlp/up/kernel", "opt_state/mu/embedding/tokens"} <= {t.name for t in everything}
    assert any("dot_general" in t.name for t in everything)
    assert len({(t.name, t.what) for t in everything}) == len(everything)


def test_slices_written_into_an_operand_are_no_new_memory(compiled):
    program = parse(
        """ENTRY %main (p: f32[64,8], q: f32[1,8]) -> f32[64,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %c = s32[] constant(0)
  %made = f32[32,8]{1,0} broadcast(%q), metadata={op_name="jit(step)/while/body/closed_call/mlp/mul"}
  %here = f32[32,8]{1,0:T(8,128)S(1)} negate(%made), metadata={op_name="jit(step)/on_chip"}
  ROOT %dus = f32[64,8]{1,0} dynamic-update-slice(%p, %q, %c, %c)
}
"""
    )
    found = largest(compiled._replace(program=program), most=1000)
    made = [(t.name, t.what, t.bytes) for t in found if t.what.startswith("f32[")]
    assert made == [("mlp/mul", "f32[32,8]", 1024)]


def test_a_refused_program_shows_what_the_compiler_names_or_else_the_state(compiled):
    named = [
        Allocation(100.0, "f32[5,5]{1,0:T(8,128)}", "jit(step)/jvp(loss)/mul"),
        Allocation(900.0, "f32[15]{0}", ""),
    ]
    outcome = TooLarge(compiled.config, compiled.state, None, None, named, "")
    assert [(t.name, t.what) for t in refused(outcome)] == [("", "f32[15]"), ("jvp(loss)/mul", "f32[5,5]")]
    assert refused(outcome._replace(largest=[]), 1) == sorted(state_tensors(compiled.state), key=lambda t: -t.bytes)[:1]


def test_names_leave_out_how_jax_traced():
    source = "jit(step)/transpose(jvp(Transformer))/while/body/closed_call/checkpoint/mlp/dot_general"
    assert short_name(source) == "transpose(jvp(Transformer))/mlp/dot_general"
    assert short_name("state.params[\\'head\\'][\\'kernel\\']") == "state.params['head']['kernel']"
