"""Tells before anything is made that a run cannot fit in memory."""

import os

from jax.sharding import Mesh

from jaxllm.config import RunConfig, UserError
from jaxllm.models.summary import memory


def check_fits(config: RunConfig, mesh: Mesh) -> None:
    """Passes a run whose parameters, gradients and optimizer state have room on the devices of `mesh`.

    Activations come on top: a run that passes may still be too large.

    Raises:
        UserError: with what is needed and what there is.
    """
    together = memory(config.model, config.optimizer, ema=config.train.ema_decay is not None).total
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    needed, available, where = together / parts, _device_memory(mesh), "each device"
    remedy = " or cut it over more devices with mesh.fsdp"
    if mesh.devices.flat[0].platform == "cpu":  # whose devices share the machine's memory: only replicas cost more
        remedy = remedy if mesh.shape["data"] > 1 else ""
        needed, available, where = needed * len(mesh.local_devices), _machine_memory(), "this machine"
    if available is not None and needed > available:
        raise UserError(
            f"the model does not fit: its parameters, gradients and {config.optimizer.kind} state need "
            f"{needed / 2**30:,.1f} GiB and {where} has {available / 2**30:,.1f} GiB; make the model smaller (`jaxllm "
            f"model` counts its parts){remedy}"
        )


def _device_memory(mesh: Mesh) -> int | None:
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
