"""What is told of a plan, as values and as text."""

import dataclasses
import json
import re

import pytest

from jaxllm.common.console import plain_console
from jaxllm.config import MeshConfig
from jaxllm.models.presets import LLAMA2_7B
from jaxllm.models.summary import flops_per_token
from jaxllm.planning.compilation import TooLarge
from jaxllm.planning.program import collectives
from jaxllm.planning.report import describe, show, size
from jaxllm.planning.topology import target
from jaxllm.sharding.preflight import replicated


@pytest.fixture(scope="module")
def plan(compiled):
    return describe(compiled, target("cpu:8"))


def text(plan):
    console = plain_console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  closed below
    show(plan, console)
    console.file.close()
    return console.export_text()


def test_a_plan_is_plain_json(plan):
    assert json.loads(json.dumps(plan)) == plan


def test_it_tells_the_run_with_the_sizes_of_its_mesh(plan):
    run = plan["run"]
    assert (run["devices"], run["mesh"]["data"], run["mesh"]["fsdp"], run["mesh"]["tensor"]) == (8, 2, 4, 1)
    assert (run["batch_size"], run["sequence_length"], run["compute_dtype"]) == (16, 32, "float32")


def test_flops_are_those_of_the_model_and_those_that_are_executed(plan, config):
    flops = plan["flops"]
    assert flops["model"] == 16 * 32 * flops_per_token(config.model, 32).total
    assert 1 < flops["executed_over_model"] < 1.6  # attention in whole blocks, and a little done again
    assert flops["executed"] == 8 * plan["work_of_a_device"]["flops"]


def test_collectives_are_added_by_kind_and_group(plan, compiled):
    found = {(row["kind"], row["devices"]): row for row in plan["collectives"]}
    assert {"all-gather", "reduce-scatter", "all-reduce"} == {kind for kind, _ in found}
    total = sum(c.count * c.bytes for c in collectives(compiled.program))
    assert sum(row["bytes"] for row in found.values()) == total
    assert all(row["link"] == "memory" for row in found.values())


def test_the_link_of_a_group_that_spans_hosts_is_named(compiled):
    hosts = describe(compiled._replace(domains=[0] * 4 + [1] * 4), target("h100:2x4"))
    links = {(row["kind"], row["devices"]): row["link"] for row in hosts["collectives"]}
    assert links[("all-gather", 4)] == "NVLink"
    assert links[("all-reduce", 2)] == "network"
    assert links[("all-reduce", 8)] == "NVLink and network"


def test_what_a_machine_has_decides_whether_it_fits(plan, compiled):
    assert plan["fits"] is None
    assert describe(compiled, target("h100:8"))["fits"] is True
    huge = compiled._replace(sizes=compiled.sizes._replace(peak=10**12))
    assert describe(huge, target("h100:8"))["fits"] is False


def test_the_memory_of_the_host_is_told_where_some_is_used(plan, compiled):
    assert "in the host's memory" not in text(plan)
    moved = describe(compiled._replace(sizes=compiled.sizes._replace(host=3 * 2**30)), target("h100:8"))
    assert re.search("in the host's memory │ +3.00 GiB", text(moved))


def test_the_text_shows_every_part(plan, compiled):
    out = text(plan)
    for part in ("data 2 x fsdp 4", "remat dots", "parameters", "gradients", "most at once", "Largest tensors"):
        assert part in out
    for part in (
        "executed",
        "reduce-scatter",
        "compiled in",
        "no time is predicted: there are no public figures for cpu",
    ):
        assert part in out
    assert "MFU" in text(describe(compiled, target("h100:8")))


def test_types_in_brackets_are_not_taken_for_markup(plan):
    assert all(tensor["what"] in text(plan) for tensor in plan["largest"])


def test_a_refused_step_tells_why_and_shows_what_is_largest(compiled):
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM"
    outcome = TooLarge(compiled.config, compiled.state, 20 * 2**30, 15.75 * 2**30, [], message)
    plan = describe(outcome, target("v5e:2x4"))
    assert plan["fits"] is False
    assert json.loads(json.dumps(plan)) == plan
    out = text(plan)
    assert "does not fit: 20.00 GiB of 15.75 GiB" in out
    assert "params/layers/mlp/up/kernel" in out
    assert message in out


def test_what_stays_whole_on_each_device_is_a_warning(plan, compiled, config):
    assert plan["warning"] is None
    assert "warning" not in text(plan)
    whole = dataclasses.replace(config, model=LLAMA2_7B, mesh=MeshConfig(data=8))
    warned = describe(TooLarge(whole, compiled.state, None, None, [], ""), target("v5e:2x4"))
    assert warned["warning"] == replicated(whole, {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}, "cpu")
    assert f"warning: {warned['warning']}" in text(warned)


def test_a_step_without_collectives_says_so(compiled):
    alone = describe(compiled, target("cpu:8")) | {"collectives": []}
    assert "none" in text(alone)


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (2048, "2.00 KiB"), (3 * 2**20, "3.00 MiB"), (2**40, "1,024.00 GiB"), (None, "?")]
)
def test_sizes_are_told_as_a_person_reads_them(count, told):
    assert size(count) == told
