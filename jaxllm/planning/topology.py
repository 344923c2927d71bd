"""Names of machines that are not here, such as `v5e:16x16`, and their devices, for which a program can be compiled.

v5e:16x16      256 TPU v5e chips: one slice of that shape
2xv5e:16x16    two such slices, joined by the data centre's network
h100:8         one host of 8 GPUs
h100:4x8       4 hosts of 8 GPUs
cpu:8          8 devices that share this machine
"""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jaxllm.config import UserError
from jaxllm.planning.chips import CHIPS, Chip

if TYPE_CHECKING:
    import jax

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""Slices of v5e and v6e."""

SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Slices of the others that are smaller than a cube of 4 x 4 x 4; larger ones are made of such cubes."""

CUBES = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""The most chips in a slice."""

MOST_CPU = 1024
"""CPU devices, each of which takes threads of the one machine."""

LIBTPU = "pip install -e '.[plan]'"
CUDA = "pip install -e '.[cuda]'"


@dataclass(frozen=True)
class Target:
    """A machine that a program is made for."""

    name: str
    """As it was asked for."""
    chip: Chip
    kind: str
    """The chip's name in `CHIPS`."""
    shape: tuple[int, ...]
    """Chips along each side of a slice; GPUs of a host; CPU devices."""
    domains: int
    """Slices of TPUs, or hosts of GPUs."""

    @property
    def chips(self) -> int:
        """All together."""
        return self.domains * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """As jax counts them."""
        return self.chips * self.chip.devices

    @property
    def memory_bytes(self) -> float:
        """Of the main memory that one device gives to programs; 0 where it is not known."""
        return self.chip.memory_bytes * self.chip.usable / self.chip.devices

    @property
    def link_bandwidth(self) -> float:
        """Bytes a second that one device sends to others of its slice or host, over all links."""
        return self.bandwidth(self.links(self.devices // self.domains))

    def bandwidth(self, links: float) -> float:
        """Bytes a second that one device sends over so many links."""
        return links * self.chip.link_bandwidth / self.chip.devices

    def links(self, devices: int) -> float:
        """Links over which each of a group of so many neighbours sends, laid along the longest sides first.

        One each way along a side; a side of which the group has one chip has none. It is one alone where the ends are
        not joined: on a part of a side, and on a side that is no ring.
        """
        if self.chip.platform != "tpu":
            return self.chip.links
        left, links = -(-devices // self.chip.devices), 0
        for side in sorted(self.shape, reverse=True):
            if left > 1 and side > 1:
                links += 2 if left >= side and side % self.chip.ring == 0 else 1
            left = -(-left // side)
        return links


class Torus(NamedTuple):
    """Where the devices of a program lie in a slice of TPUs."""

    coords: list[tuple[int, ...]]
    """Of the chip of each device, in the order of the program."""
    sides: tuple[int, ...]
    """Chips along each side of the slice."""
    ring: int
    """As `Chip.ring`."""

    def links(self, group: Iterable[int]) -> float:
        """Links over which each device of a group sends, as `Target.links` counts them.

        Devices that lie apart share the links between them with the groups that lie there.
        """
        links = 0.0
        for along, side in zip(zip(*(self.coords[i] for i in group), strict=True), self.sides, strict=True):
            places = set(along)
            if len(places) > 1:
                gap = (max(places) - min(places)) / (len(places) - 1)
                is_closed = len(places) * gap == side and side % self.ring == 0
                links += (2 if is_closed else 1) / gap
        return links


def target(name: str) -> Target:
    """What the name of a machine means.

    Raises:
        UserError: no such chip, or no such shape of it, with those that there are.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", name.strip().lower())
    kind = found[2] if found else re.sub(r"^\d+x|:.*$", "", name.strip().lower())
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
        raise UserError(f"--topology {name}: there is no chip '{kind}'; did you mean '{near}'? {_all()}")
    if found is None:
        raise UserError(f"--topology {name}: expected a chip, ':' and a shape. {_all()}")
    shape = tuple(int(side) for side in found[3].split("x"))
    domains, chip = int(found[1] or 1), CHIPS[kind]
    wrong = UserError(f"--topology {name}: there is no such {kind}. {_of(kind)}")
    if chip.platform == "tpu":
        if domains < 1 or not _is_slice(kind, shape):
            raise wrong
        return Target(name, chip, kind, shape, domains)
    is_gpu = chip.platform == "gpu"
    if found[1] or 0 in shape or len(shape) > (2 if is_gpu else 1) or (not is_gpu and shape[0] > MOST_CPU):
        raise wrong
    return Target(name, chip, kind, shape[-1:], math.prod(shape[:-1]))


def _is_slice(kind: str, shape: tuple[int, ...]) -> bool:
    text = "x".join(map(str, shape))
    if kind not in CUBES:
        return text in FLAT
    in_cubes = len(shape) == 3 and all(side > 0 and side % 4 == 0 for side in shape) and list(shape) == sorted(shape)
    return text in SMALL or (in_cubes and math.prod(shape) <= CUBES[kind])


def _of(kind: str) -> str:
    """The shapes that a chip comes in."""
    if kind == "cpu":
        return f"CPU devices are cpu:N, such as cpu:8, at most {MOST_CPU:,}"
    if CHIPS[kind].platform == "gpu":
        return f"{kind} comes as {kind}:GPUS of one host and {kind}:HOSTSxGPUS, such as {kind}:8 and {kind}:4x8"
    if kind not in CUBES:
        return f"Slices of {kind} are {', '.join(FLAT)}; several of them are written 2x{kind}:16x16"
    return (
        f"Slices of {kind} are {', '.join([*SMALL, *_cubes(kind)])}; several of them are written 2x{kind}:4x4x4. "
        f"(Any AxBxC of multiples of 4 with A <= B <= C and at most {CUBES[kind]:,} chips will do.)"
    )


def _cubes(kind: str) -> Iterator[str]:
    """The slices that double from 64 chips to the largest that does."""
    shape = [4, 4, 4]
    while math.prod(shape) <= CUBES[kind]:
        yield "x".join(map(str, shape))
        shortest = max(i for i, side in enumerate(shape) if side == min(shape))
        shape[shortest] *= 2


def _all() -> str:
    tpus = [kind for kind, chip in CHIPS.items() if chip.platform == "tpu"]
    return f"There are {', '.join(tpus)} (such as v5e:16x16, v5p:4x4x4, 2xv5e:16x16), h100 (h100:8, h100:4x8) and cpu:8"


def prepare(asked: Target) -> None:
    """Sets what jax reads when it starts: only the CPU of this machine is used, in as many parts as `cpu:N` asks for.

    Raises:
        UserError: what the compiler of the target comes in is not installed.
    """
    if asked.chip.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {asked.name}: compiling for TPUs needs the package libtpu: {LIBTPU}")
    if asked.chip.platform == "gpu" and not any(map(_is_there, ("jax_cuda13_plugin", "jax_cuda12_plugin"))):
        raise UserError(f"--topology {asked.name}: compiling for GPUs needs jax's CUDA plugin: {CUDA}")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A program that was found compiled would tell nothing of its compile time, and of its memory less.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # libtpu asks the cloud which TPU it is on, tells at length that it is on none, and forbids two compilations.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    if asked.chip.platform == "cpu":
        count = f"--xla_force_host_platform_device_count={asked.devices}"
        flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", os.environ.get("XLA_FLAGS", ""))
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def devices(asked: Target) -> "list[jax.Device]":
    """The devices of the machine; programs can be compiled for them, and, but for `cpu:N`, nothing runs on them.

    `prepare` comes first, before jax is imported.

    Raises:
        UserError: the compiler does not know the topology; or jax had started with fewer CPU devices.
    """
    import jax
    from jax.experimental import topologies

    if asked.chip.platform == "cpu":
        there = jax.devices("cpu")
        if len(there) < asked.devices:
            raise UserError(f"--topology {asked.name}: jax was started with {len(there)} CPU devices already")
        return there[: asked.devices]
    try:
        if asked.chip.platform == "gpu":
            from jaxllm.planning.gpus import SPECS

            shape = f"{asked.domains}x1x{asked.shape[0]}" if asked.domains > 1 else f"1x1x{asked.shape[0]}"
            found = topologies.get_topology_desc("", "cuda", target_config=SPECS[asked.kind], topology=shape)
        else:
            found = topologies.get_topology_desc(_libtpu_name(asked), "tpu", **_libtpu_options(asked))
    except RuntimeError as error:  # jax's own, and NotImplementedError, are of its kind
        reason = str(error).partition("\n")[0]
        raise UserError(f"--topology {asked.name}: the compiler does not know it ({reason:.200})") from error
    return list(found.devices)


def _libtpu_name(asked: Target) -> str:
    return f"{asked.kind}:{'x'.join(map(str, asked.shape))}"


def _libtpu_options(asked: Target) -> dict[str, object]:
    options: dict[str, object] = {}
    if asked.domains > 1:
        options["num_slices"] = asked.domains
    if asked.kind == "v4":  # both cores as one device, as v5p has it by itself, and as jax sees a v4
        options["chip_config_name"] = "megacore"
    if asked.chips == asked.domains and math.prod(asked.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options


def domains_of(mesh_devices: "list[jax.Device]", asked: Target) -> list[int]:
    """For each device, in the order of a mesh and so of its program, the slice or host that it is in."""
    if asked.domains == 1:
        return []
    if asked.chip.platform == "gpu":
        return [device.id // asked.shape[0] for device in mesh_devices]
    return [device.slice_index for device in mesh_devices]


def torus_of(mesh_devices: "list[jax.Device]", asked: Target) -> Torus | None:
    """Where the devices of a mesh lie, in its order: those of the first slice, whose program is compiled."""
    if asked.chip.platform != "tpu":
        return None
    slices = domains_of(mesh_devices, asked) or [0] * len(mesh_devices)
    first = [tuple(device.coords) for device, at in zip(mesh_devices, slices, strict=True) if at == slices[0]]
    sides = tuple(max(along) + 1 for along in zip(*first, strict=True))
    return Torus(first, sides, asked.chip.ring)
