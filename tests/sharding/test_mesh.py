"""Meshes from sizes."""

import math

import jax
import pytest
from jax.sharding import AxisType

from jaxllm.config import AXES, MeshConfig, UserError
from jaxllm.sharding.mesh import _arranged, make_mesh


def test_minus_one_fills_with_what_is_left():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}


def test_every_axis_is_there_and_explicit_on_one_device():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 16}, {"data": 2, "fsdp": 2}])
def test_sizes_that_do_not_make_the_devices_are_named(sizes):
    with pytest.raises(UserError, match=r"mesh: data .* does not make the 8 devices"):
        make_mesh(MeshConfig(**sizes))


class Device:
    """What a mesh reads of a device of a slice."""

    platform = device_kind = "cpu"

    def __init__(self, place: int, slices: int, devices: int):
        self.id, self.slice_index, self.process_index = place, place * slices // devices, 0


def slices_along(sizes: tuple[int, int, int], slices: int) -> list[list[int]]:
    """For each replica, the slices that its devices are in."""
    devices = [Device(i, slices, math.prod(sizes)) for i in range(math.prod(sizes))]
    arranged = _arranged(sizes, devices)
    assert arranged.shape == sizes
    assert {d.id for d in arranged.flat} == {d.id for d in devices}
    return [sorted({d.slice_index for d in replica.flat}) for replica in arranged]


def test_slices_lie_along_the_outermost_axis_that_they_divide():
    assert slices_along((2, 4, 1), slices=2) == [[0], [1]]
    assert slices_along((4, 2, 1), slices=2) == [[0], [0], [1], [1]]
    assert slices_along((2, 4, 1), slices=4) == [[0, 1], [2, 3]]
    assert slices_along((1, 8, 1), slices=2) == [[0, 1]]
    assert slices_along((1, 3, 4), slices=6) == [[0, 1, 2, 3, 4, 5]]
