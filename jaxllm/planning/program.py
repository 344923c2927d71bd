"""The communication of a compiled program: each collective with its bytes, its link, and how often it runs."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from jaxllm.config import UserError
from jaxllm.planning.text import Operation, Program, parse
from jaxllm.planning.topology import Torus

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

SCATTERED = "all-reduce-scatter"
"""A reduce-scatter on TPU that is written with its whole sum."""

ACROSS = re.compile(r'_xla_megascale_target="(?:\{([\d,]+)\})?.*_xla_megascale_transfer_type="(\w+)"')
"""How a TPU program of several slices writes what it sends over the data centre's network, in place of a collective."""

SENDS = re.compile(f"{ACROSS.pattern}|source_target_pairs=")
"""And what is a part of one: a GPU program may write a permutation as such."""

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
    links: float | None = None
    """Fast ones over which each device sends; none are all that it has."""

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
    if kind == "collective-broadcast":
        return 1.0 if devices > 1 else 0.0
    return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def collectives(program: str | Program, domains: Sequence[int] = (), torus: Torus | None = None) -> list[Collective]:
    """Every collective in the text of a compiled program (`compiled.as_text()`) in which devices meet.

    Args:
        program: the text, or what `parse` made of it.
        domains: for each device, in the order of the program, the slice or host that it is in; none are all in one.
        torus: where the devices lie in a slice of TPUs, which tells over how many links each collective goes.

    Raises:
        UserError: the trip count of a loop is not known, or a collective or its groups are written in an unknown way.
    """
    parsed = parse(program) if isinstance(program, str) else program
    is_of_one_slice = parsed.devices < len(domains)  # of several TPU slices, and sends to the others
    place = _Place(parsed.devices, () if is_of_one_slice else domains, torus)
    found = [_collective(operation, runs, place) for operation, runs in _operations(parsed)]
    return [c for c in found if c is not None and c.count and c.devices > 1]


def _operations(program: Program) -> Iterator[tuple[Operation, int]]:
    """Each collective once. A TPU program repeats one that runs beside products in all the operations it runs beside:
    in its start, in each of these fused with it, and in its end, always on the same channel. What it runs as a
    reduce-scatter it writes as an all-reduce of which a slice is taken, in a computation of that name.
    """
    seen: set[tuple[str, str]] = set()
    for computation, operation, runs in program.operations():
        kind = operation.kind.removesuffix("-start")
        if kind not in KINDS and not (kind == "send" and SENDS.search(operation.attributes)):
            if "replica_groups=" in operation.attributes and not kind.endswith(("-done", "-update")):
                raise UserError(f"an unknown collective: %{operation.name} = {kind} {operation.attributes:.200}")
            continue
        channel = re.search(r"channel_id=(\d+)", operation.attributes)
        if channel and computation in program.fused:
            if (kind, channel[1]) in seen:
                continue
            seen.add((kind, channel[1]))
        if computation.startswith("all-reduce-scatter") and kind == "all-reduce":
            operation = operation._replace(kind=SCATTERED)
        yield operation, runs


class _Place(NamedTuple):
    """Where a program runs."""

    devices: int
    domains: Sequence[int]
    torus: Torus | None

    def meeting(self, attributes: str) -> tuple[int, int, float | None]:
        """The devices of the largest groups; the domains that the widest one spreads over; the links that they have."""
        groups = _groups(attributes, self.devices)
        spread = max((len({self.domains[i] for i in group}) for group in groups), default=1) if self.domains else 1
        largest = max(map(len, groups), default=1)
        links = (self.torus.links(group) for group in groups if len(group) == largest) if self.torus else ()
        most = 1.0 if "source_target_pairs" in attributes else math.inf  # one sends to one other, by one way
        return largest, spread, min(most, max(links, default=0.0)) or None


def _collective(operation: Operation, count: int, place: _Place) -> Collective | None:
    sizes = [int(array.bytes) for array in operation.arrays]
    if operation.kind == "send":
        return _sent(operation, sizes[0], count, place)
    kind = operation.kind.removesuffix("-start")
    devices, spread, links = place.meeting(operation.attributes)
    whole = sum(sizes)
    if operation.kind != kind and (kind != "all-reduce" or operation.type.startswith("((")):
        inputs = len(operation.operands)  # the start of most holds its operands before its results
        whole = sum(sizes[inputs : 2 * inputs])
    if kind == SCATTERED:
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":  # its result is one part
        whole *= devices
    return Collective(kind, whole, devices, count, operation.source, spread, links)


def _sent(operation: Operation, size: int, count: int, place: _Place) -> Collective:
    """What a program sends without a collective: over slices of TPUs, where a gather sends one part of the whole."""
    across = ACROSS.search(operation.attributes)
    if across is None:
        devices, spread, links = place.meeting(operation.attributes)
        return Collective("collective-permute", size, devices, count, operation.source, spread, links)
    kind, slices = across[2].lower().replace("_", "-"), len((across[1] or "0,0").split(","))
    kind = "collective-permute" if kind == "one-to-one" else kind
    if kind not in KINDS:
        raise UserError(f"an unknown collective: %{operation.name} = send {operation.attributes:.200}")
    return Collective(kind, size * (slices if kind == "all-gather" else 1), slices, count, operation.source, slices)


def _groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """All groups, in any of the ways in which XLA writes them, in a program of so many devices."""
    if mesh := MESH.search(attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh["sizes"])}
        axes = re.findall(r"'([^']+)'", mesh["axes"])
        order = [axis for axis in sizes if axis not in axes] + [axis for axis in sizes if axis in axes]
        places = _transposed(list(sizes.values()), [list(sizes).index(axis) for axis in order])
        numbers = _iota(mesh["dims"], mesh["order"]) if mesh["dims"] else list(range(len(places)))
        return _rows([numbers[place] for place in places], math.prod(sizes[axis] for axis in axes))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _rows(_iota(iota[2], iota[3]), int(iota[1]))
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes):
        return [tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if "replica_groups={}" in attributes:
        return [tuple(range(devices))]
    raise UserError(f"unknown groups of devices: {attributes.strip():.300}")


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
