"""Tells before anything is made that a run cannot fit in memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh

from jaxllm.config import RunConfig, UserError
from jaxllm.layers.kernels import Case, why_not
from jaxllm.sharding.preflight import CUT_FROM, state_on_devices
from jaxllm.train.step import compute_dtype


def check_fits(config: RunConfig, mesh: Mesh) -> None:
    """Passes a run whose parameters, gradients and optimizer state have room on the devices of `mesh`.

    Activations come on top, and what an accelerator's host must hold is not counted: a run that passes may still be
    too large.

    Raises:
        UserError: with what is needed and what there is.
    """
    needed, available, where = _held(config, mesh), _device_memory(mesh), "each device"
    whole, kind = state_on_devices(config, _platform(mesh)), config.optimizer.kind
    remedy = " or cut it over more devices with mesh.fsdp"
    if config.mesh.zero_stage < 3:
        remedy += f" (with mesh.zero_stage = {config.mesh.zero_stage} not all of it is cut)"
    if _platform(mesh) == "cpu":  # whose devices share the machine's memory: only replicas cost more
        needed, available, where = needed * len(mesh.local_devices), _machine_memory(), "this machine"
        remedy = remedy if needed > whole.total else ""
    elif available is not None and _held(_offloaded(config), mesh) <= available:
        remedy += f", or keep the {kind} state in the host's memory with --train.offload-optimizer"
    if available is not None and needed > available:
        parts = f"parameters, gradients and {kind} state" if whole.optimizer else "parameters and gradients"
        raise UserError(
            f"the model does not fit: its {parts} need {needed / 2**30:,.1f} GiB and {where} has "
            f"{available / 2**30:,.1f} GiB; make the model smaller (`jaxllm model` counts its parts){remedy}"
        )


def check_attention(config: RunConfig, mesh: Mesh) -> None:
    """Passes a run whose attention can be computed as `train.attention` says, on the devices of `mesh`.

    Raises:
        UserError: with the reason.
    """
    backend, model = config.train.attention, config.model
    reason = ""
    if backend not in ("auto", "xla"):
        platform, tokens = _platform(mesh), config.data.sequence_length
        case = Case(platform, tokens, model.head_dim, compute_dtype(config), model.attention_softcap)
        reason = why_not(backend, case)
        if mesh.shape["sequence"] > 1:
            reason = f"rows are cut over mesh.sequence = {mesh.shape['sequence']} devices, which attend in a ring"
    if reason:
        raise UserError(f"train.attention = {backend!r}: {reason}; 'auto' or 'xla' would do")


def _held(config: RunConfig, mesh: Mesh) -> float:
    """Bytes of the state and the gradients in the memory of each device."""
    parts = state_on_devices(config, _platform(mesh))
    cut = (stage <= config.mesh.zero_stage for stage in CUT_FROM)
    held = sum(part / (mesh.shape["fsdp"] if is_cut else 1) for part, is_cut in zip(parts, cut, strict=True))
    return held / mesh.shape["tensor"]


def _offloaded(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, offload_optimizer=True))


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _device_memory(mesh: Mesh) -> int | None:
    stats = mesh.local_devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def _machine_memory() -> int:
    """Of the machine, or what a container may use of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_container_limits(Path("/"))])


def _container_limits(root: Path) -> Iterator[int]:
    """The limits of this process's control group (version 2, then 1), and of those around it."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                base = root / "sys/fs/cgroup" / controllers
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                inner = base / group.strip("/")
                for folder in (inner, *inner.parents):
                    if folder.is_relative_to(base) and (folder / name).is_file():
                        with contextlib.suppress(OSError, ValueError):  # no limit reads `max`
                            yield int((folder / name).read_text())
