"""The one place that makes meshes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxllm.config import AXES, MeshConfig, UserError


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of explicit axes over `devices` (all, when left out), its -1 filled with what is left.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        asked = " x ".join(f"{axis} {getattr(config, axis)}" for axis in AXES)
        raise UserError(f"mesh: {asked} does not make the {len(devices)} devices there are; -1 fills one axis")
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def _arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Any:
    """The devices as an array of these sizes, neighbours along an axis as near to each other as the network allows.

    Several slices (TPU pods, or GPU hosts, with a slower network between them) lie along the outermost axes that they
    divide: what `jax.make_mesh` refuses, as it does an axis that takes a part of a side of the torus.
    """
    slices = left = len({getattr(device, "slice_index", None) for device in devices})
    across = []
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    within = [size // n for size, n in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
