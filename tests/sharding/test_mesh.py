"""Meshes from sizes."""

import jax
import pytest
from jax.sharding import AxisType

from jaxllm.config import AXES, MeshConfig, UserError
from jaxllm.sharding.mesh import make_mesh


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
