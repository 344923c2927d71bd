"""The communication of a compiled program: each collective with its bytes, and how often it runs.

`compiled.cost_analysis()` counts the body of a loop once. Here a body counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
"""Of one number of each type that is communicated."""

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
LOOP = re.compile(r" while\(.*condition=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
LESS_THAN = re.compile(r"^\s*ROOT .* compare\(.*%([\w.-]+)\), direction=LT")
COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


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

    @property
    def traffic(self) -> float:
        """Bytes that each device sends in one run of the program, by a ring."""
        share = (self.devices - 1) / self.devices
        rounds = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.count * self.bytes * rounds


def collectives(program: str) -> list[Collective]:
    """Every collective in the text of a compiled program (`compiled.as_text()`) in which devices meet.

    Raises:
        ValueError: the trip count of a loop is not known, or groups of devices are written in an unknown way.
    """
    lines, entry = _computations(program)
    runs = dict.fromkeys(lines, 0)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for line in lines[name]:
            for callee in _called(line):
                visit(callee, times * _trips(line, lines))

    visit(entry, 1)
    found = [_collective(line, runs[name]) for name, body in lines.items() for line in body]
    return [c for c in found if c is not None and c.count and c.devices > 1]


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            name = head["name"]
            entry = name if head["entry"] else entry
            lines[name] = []
        elif name and line != "}":
            lines[name].append(line)
    return lines, entry


def _called(line: str) -> Iterator[str]:
    yield from CALLED.findall(line)
    for names in BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _trips(line: str, lines: dict[str, list[str]]) -> int:
    """How often one run of this operation runs what it calls.

    XLA on CPU and GPU writes the trip count of a loop down. On TPU it is the constant below which the counter must be:
    the loops that come from a scan count from 0.
    """
    loop = LOOP.search(line)
    if loop is None:
        return 1
    if trips := TRIPS.search(line):
        return int(trips[1])
    condition = lines[loop[1]]
    for bound in filter(None, map(LESS_THAN.match, condition)):
        for other in condition:
            if constant := re.match(rf"^\s*%{re.escape(bound[1])} = s32\[\]\S* constant\((\d+)\)", other):
                return int(constant[1])
    raise ValueError(f"a loop whose trip count is not known: {line.strip():.300}")


def _collective(line: str, count: int) -> Collective | None:
    match = COLLECTIVE.match(line)
    if match is None:
        return None
    sizes = [
        BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in ARRAY.findall(match["type"])
    ]
    devices = _group(line)
    # The start of a gather holds its operand beside its result.
    whole = max(sizes) if match["start"] and match["kind"] != "all-reduce" else sum(sizes)
    whole *= devices if match["kind"] == "reduce-scatter" else 1
    source = re.search(r'op_name="([^"]*)"', line)
    return Collective(match["kind"], whole, devices, count, source[1] if source else "")


def _group(line: str) -> int:
    """The devices of one group, in any of the ways in which XLA writes groups."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"unknown groups of devices: {line.strip():.300}")
