"""The one place that makes meshes."""

import math
from collections.abc import Sequence

import jax
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
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)
