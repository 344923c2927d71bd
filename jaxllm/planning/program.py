"""The communication of a compiled program: each collective with its bytes, its link, and how often it runs."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from jaxllm.planning.text import Operation, Program, parse

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

ACROSS = re.compile(r'_xla_megascale_target="\{([\d,]*)\}.*_xla_megascale_transfer_type="(\w+)"')
"""How a TPU program of several slices writes what it sends over the data centre's network, in place of a collective."""

MESH = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\(\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))?"
    r" \{(?P<axes>[^}]*)\}"
)
"""Groups along axes of a mesh, whose devices may be numbered in another order."""


@dataclass(frozen=True)
class Collective:
    """One collective operation of a program."""

    kind: str
    """One of `KINDS`."""
    bytes: int
    """Of the whole buffer on one device: what is gathered, what is summed, or what is scattered."""
    devices: int
    """That take part in one group of it."""
    count: int
    """How often it runs in one run of the program."""
    source: str
    """The operation of the model that it comes from, as jax named it."""
    domains: int = 1
    """Over how many slices (TPU) or hosts (GPU) one group of it spreads; 1 stays on the fast links."""

    @property
    def traffic(self) -> float:
        """Bytes that each device sends in one run of the program, by a ring."""
        return self.count * self.bytes * _rounds(self.kind, self.devices)

    @property
    def fast_traffic(self) -> float:
        """The part of it that stays within a slice or host: a ring within, then one across on what is left."""
        if self.kind == "collective-permute" and self.domains > 1:
            return 0.0
        return self.count * self.bytes * _rounds(self.kind, self.devices // self.domains)

    @property
    def slow_traffic(self) -> float:
        """Bytes that each device sends to another slice or host."""
        if self.kind == "collective-permute":
            return self.traffic if self.domains > 1 else 0.0
        within = max(1, self.devices // self.domains)
        return self.count * self.bytes / within * _rounds(self.kind, self.domains)


def _rounds(kind: str, devices: int) -> float:
    """How often a ring of so many devices sends the buffer."""
    share = (devices - 1) / devices
    return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def collectives(program: str | Program, domains: Sequence[int] = ()) -> list[Collective]:
    """Every collective in the text of a compiled program (`compiled.as_text()`) in which devices meet.

    Args:
        program: the text, or what `parse` made of it.
        domains: for each device, in the order of the program, the slice or host that it is in; none are all in one.

    Raises:
        ValueError: the trip count of a loop is not known, or groups of devices are written in an unknown way.
    """
    parsed = parse(program) if isinstance(program, str) else program
    found = [_collective(operation, runs, domains) for operation, runs in _operations(parsed)]
    return [c for c in found if c is not None and c.count and c.devices > 1]


def _operations(program: Program) -> Iterator[tuple[Operation, int]]:
    """Each collective once. A TPU program repeats one that runs beside products in all the operations it runs beside:
    in its start, in each of these fused with it, and in its end, always on the same channel.
    """
    seen: set[tuple[str, str]] = set()
    for computation, operation, runs in program.operations():
        kind = operation.kind.removesuffix("-start")
        if kind not in KINDS and not (kind == "send" and ACROSS.search(operation.attributes)):
            continue
        channel = re.search(r"channel_id=(\d+)", operation.attributes)
        if channel and computation in program.fused:
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        yield operation, runs


def _collective(operation: Operation, count: int, domains: Sequence[int]) -> Collective | None:
    sizes = [int(array.bytes) for array in operation.arrays]
    if operation.kind == "send":
        across = ACROSS.search(operation.attributes)
        slices = len(across[1].split(",")) if across else 1
        kind = across[2].lower().replace("_", "-") if across else ""
        return Collective(kind, sizes[0], slices, count, operation.source, slices)
    kind = operation.kind.removesuffix("-start")
    devices, spread = _meeting(operation.attributes, domains)
    whole = sum(sizes)
    if operation.kind != kind and (kind != "all-reduce" or operation.type.startswith("((")):
        inputs = len(operation.operands)  # the start of most holds its operands before its results
        whole = sum(sizes[inputs : 2 * inputs])
    whole *= devices if kind == "reduce-scatter" else 1
    return Collective(kind, whole, devices, count, operation.source, spread)


def _meeting(attributes: str, domains: Sequence[int]) -> tuple[int, int]:
    """The devices of one group, and the domains that the widest group spreads over."""
    sizes, groups = _groups(attributes)
    spread = max((len({domains[i] for i in group}) for group in groups), default=1) if domains else 1
    return sizes, spread


def _groups(attributes: str) -> tuple[int, list[tuple[int, ...]]]:
    """Devices in one group, and all groups, in any of the ways in which XLA writes them."""
    if mesh := MESH.search(attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh["sizes"])}
        axes = re.findall(r"'([^']+)'", mesh["axes"])
        order = [axis for axis in sizes if axis not in axes] + [axis for axis in sizes if axis in axes]
        places = _transposed(list(sizes.values()), [list(sizes).index(axis) for axis in order])
        devices = _iota(mesh["dims"], mesh["order"]) if mesh["dims"] else list(range(len(places)))
        size = math.prod(sizes[axis] for axis in axes)
        return size, _rows([devices[place] for place in places], size)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return int(iota[1]), _rows(_iota(iota[2], iota[3]), int(iota[1]))
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        groups = [tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        return len(groups[0]), groups
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes):
        return 2, [tuple(int(n) for n in pair.split(",")) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    raise ValueError(f"unknown groups of devices: {attributes.strip():.300}")


def _iota(dims: str, order: str | None) -> list[int]:
    """The devices that XLA writes as `[2,4]T(1,0)`."""
    sizes = [int(n) for n in dims.split(",")]
    return _transposed(sizes, [int(n) for n in order.split(",")] if order else list(range(len(sizes))))


def _rows(flat: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _transposed(dims: list[int], order: list[int]) -> list[int]:
    """0, 1, ... as an array of `dims` with its dimensions in another `order`, flat."""
    steps = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    return [
        sum(place * steps[axis] for place, axis in zip(places, order, strict=True))
        for places in product(*(range(dims[axis]) for axis in order))
    ]
