"""Names of machines, and what is said of those that do not exist."""

import itertools
import os
from types import SimpleNamespace

import pytest

from jaxllm.config import UserError
from jaxllm.planning import topology
from jaxllm.planning.chips import CHIPS
from jaxllm.planning.gpus import SPECS
from jaxllm.planning.topology import CUBES, FLAT, Torus, devices, domains_of, prepare, target, torus_of


@pytest.mark.parametrize(
    ("name", "chips", "device_count", "domains"),
    [
        ("v5e:16x16", 256, 256, 1),
        ("2xv5e:16x16", 512, 512, 2),
        ("v4:4x4x8", 128, 128, 1),
        ("v5p:2x2x1", 4, 4, 1),
        ("V6E:2x4", 8, 8, 1),
        ("tpu7x:4x4x4", 64, 128, 1),
        ("h100:8", 8, 8, 1),
        ("h100:4x8", 32, 32, 4),
        ("cpu:8", 8, 8, 1),
    ],
)
def test_a_name_tells_chips_devices_and_slices(name, chips, device_count, domains):
    found = target(name)
    assert (found.chips, found.devices, found.domains) == (chips, device_count, domains)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v6:4x4",
            r"there is no chip 'v6'; did you mean 'v6e'\? There are v4, v5e, v5p, v6e, tpu7x .*h100:4x8.* cpu:8$",
        ),
        ("v5e", r"expected a chip, ':' and a shape. There are v4"),
        ("v5e:3x5", r"no such v5e. Slices of v5e are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16; .*2xv5e:16x16"),
        ("0xv5e:4x4", r"no such v5e"),
        ("v5p:4x4", r"Slices of v5p are 2x2x1, .*4x4x4, 4x4x8, .*16x16x16; .*2xv5p:4x4x4.*at most 6,144 chips"),
        ("v4:8x4x4", r"no such v4"),
        ("v4:16x16x32", r"no such v4"),
        ("h100:2x4x8", r"h100 comes as h100:GPUS of one host and h100:HOSTSxGPUS"),
        ("2xh100:8", r"no such h100"),
        ("cpu:2x4", r"CPU devices are cpu:N"),
        ("cpu:0", r"no such cpu"),
    ],
)
def test_a_machine_that_does_not_exist_is_told_with_those_that_do(name, message):
    with pytest.raises(UserError, match=message) as error:
        target(name)
    assert str(error.value).startswith(f"--topology {name}: ")


def test_every_slice_that_is_listed_exists():
    for kind in ("v5e", "v6e"):
        assert all(target(f"{kind}:{shape}").domains == 1 for shape in FLAT)
    for kind in CUBES:
        assert all(
            target(f"{kind}:{shape}").chips <= CUBES[kind] for shape in [*topology.SMALL, *topology._cubes(kind)]
        )


def test_a_side_without_joined_ends_carries_half_and_one_of_length_one_nothing():
    link = CHIPS["v5e"].link_bandwidth
    assert target("v5e:16x16").link_bandwidth == 4 * link
    assert target("v5e:8x16").link_bandwidth == 3 * link
    assert target("v5e:4x4").link_bandwidth == 2 * link
    assert target("v5e:1x1").link_bandwidth == 0
    assert target("v5p:4x4x4").link_bandwidth == 6 * CHIPS["v5p"].link_bandwidth
    assert target("tpu7x:4x4x4").link_bandwidth == 6 * CHIPS["tpu7x"].link_bandwidth / 2


@pytest.mark.parametrize(
    ("name", "group_size", "links"),
    [
        ("v5e:4x4", 16, 2),
        ("v5e:4x4", 4, 1),
        ("v5e:4x4", 8, 2),
        ("v5e:16x16", 16, 2),
        ("v5e:16x16", 8, 1),
        ("v5p:8x8x8", 8, 2),
        ("v5p:8x8x8", 64, 4),
        ("v5p:8x8x8", 512, 6),
        ("tpu7x:4x4x4", 8, 2),
        ("v5e:1x1", 1, 0),
        ("h100:8", 2, 1),
    ],
)
def test_a_group_of_neighbours_has_the_links_of_the_sides_that_it_fills(name, group_size, links):
    assert target(name).links(group_size) == links


def torus(*sides):
    return Torus(list(itertools.product(*map(range, sides))), sides, ring=4)


@pytest.mark.parametrize(
    ("sides", "group", "links"),
    [
        ((2, 4), range(8), 3),
        ((2, 4), (0, 1, 2, 3), 2),
        ((2, 4), (0, 4), 1),
        ((2, 8), (0, 1, 2, 3), 1),
        ((2, 8), (0, 2, 4, 6), 2 / 2),
        ((2, 6), (0, 2, 4), 1 / 2),
        ((4, 4), (0, 1, 4, 5), 2),
        ((4, 4), (3,), 0),
    ],
)
def test_a_group_has_the_links_along_the_sides_that_it_spans_and_shares_those_it_jumps_over(sides, group, links):
    assert torus(*sides).links(group) == links


def test_the_torus_is_that_of_the_first_slice_in_the_order_of_the_mesh():
    devices = [Device(place) for place in (17, 1, 16, 0)]
    assert torus_of(devices, target("2xv5e:4x4")) == Torus([(1, 0), (0, 0)], (2, 1), 16)
    assert torus_of([SimpleNamespace(coords=[1, 0])], target("v5e:4x4")).coords == [(1, 0)]
    assert torus_of(devices, target("h100:2x8")) is None


@pytest.fixture
def environment(monkeypatch):
    """A copy of the environment, which `prepare` may change."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return os.environ


def without(monkeypatch, *missing):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None if name in missing else object())


def test_a_compiler_that_is_not_installed_is_told_with_the_line_that_installs_it(monkeypatch, environment):
    without(monkeypatch, "libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
    with pytest.raises(UserError, match=r"v5e:4x4: compiling for TPUs needs .*pip install -e '\.\[plan\]'"):
        prepare(target("v5e:4x4"))
    with pytest.raises(UserError, match=r"h100:8: compiling for GPUs needs .*pip install -e '\.\[cuda\]'"):
        prepare(target("h100:8"))


def test_the_number_of_cpu_devices_replaces_what_was_asked_for_before(environment):
    environment["XLA_FLAGS"] = "--xla_cpu_x=1 --xla_force_host_platform_device_count=3"
    prepare(target("cpu:5"))
    assert environment["XLA_FLAGS"].split() == ["--xla_cpu_x=1", "--xla_force_host_platform_device_count=5"]
    assert environment["JAX_PLATFORMS"] == "cpu"


def test_cpu_devices_are_those_that_jax_has_and_too_few_are_told():
    assert len(devices(target("cpu:4"))) == 4
    with pytest.raises(UserError, match="cpu:9: jax was started with 8 CPU devices already"):
        devices(target("cpu:9"))


class Device:
    """What is read of a jax device."""

    def __init__(self, place: int):
        self.id, self.slice_index, self.coords = place, place // 16, (place % 16, 0)


def test_a_gpu_has_one_memory_of_which_jax_takes_three_quarters():
    assert "device_memory_size: 84942979072\n" in SPECS["h100"]
    assert "cuda_compute_capability { major: 9 }" in SPECS["h100"]
    assert target("h100:8").memory_bytes == 0.75 * 84_942_979_072


def test_devices_lie_in_slices_and_hosts():
    assert domains_of([Device(0), Device(17)], target("2xv5e:4x4")) == [0, 1]
    assert domains_of([Device(0), Device(9)], target("h100:2x8")) == [0, 1]
    assert domains_of([Device(0)], target("v5e:4x4")) == []
