"""The text of a compiled program (`compiled.as_text()`), taken apart: its operations, and how often each runs.

`compiled.cost_analysis()` counts the body of a loop once. Here a body counts as often as it runs.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxllm.config import UserError

COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .*\{$")
OPERATION = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<kind>[a-z][\w-]*)\((?P<rest>.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
BITS = re.compile(r"[a-z]+(\d+)")


class Array(NamedTuple):
    """One array of an operation's type."""

    kind: str
    """Type of its numbers as XLA writes it, such as `bf16`."""
    shape: tuple[int, ...]
    layout: str
    """Order of the dimensions, tiles and memory space as XLA writes them, such as `1,0:T(8,128)S(1)`."""

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Of its numbers, without padding."""
        return self.size * bits(self.kind) / 8

    @property
    def padded_bytes(self) -> float:
        """With its last dimensions (in the order of the layout) rounded up to the tile that holds them."""
        order, _, tiles = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiles)
        if tile is None or not self.shape:
            return self.bytes
        sizes = [self.shape[int(d)] for d in reversed(order.split(",")) if d]
        steps = [int(n) for n in tile[1].split(",")][-len(sizes) :]
        rounded = [-(-size // step) * step for size, step in zip(sizes[-len(steps) :], steps, strict=True)]
        return math.prod(sizes[: -len(steps)]) * math.prod(rounded) * bits(self.kind) / 8

    @property
    def is_on_chip(self) -> bool:
        """In a memory of the chip that is not its main one (VMEM and the like on TPU)."""
        return "S(" in self.layout


class Operation(NamedTuple):
    """One line of a program."""

    name: str
    kind: str
    """Such as `fusion` or `all-gather`."""
    type: str
    """Of what it makes, as XLA writes it: one array or a tuple."""
    operands: tuple[str, ...]
    """Names of the operations of the same computation that it reads."""
    attributes: str
    """All that follows the operands."""
    is_root: bool
    """It makes what the computation returns."""

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What it makes."""
        return arrays(self.type)

    @property
    def source(self) -> str:
        """The operation of the model that it comes from, as jax named it; empty where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Program(NamedTuple):
    """A compiled program."""

    computations: dict[str, dict[str, Operation]]
    """By name, in the order in which they run where the program is scheduled; `fused` ones too."""
    entry: str
    """Of the computation that is the whole program."""
    runs: dict[str, int]
    """How often each computation runs in one run of the program."""
    fused: frozenset[str]
    """Computations that are the body of one operation, whose inner results lie in no memory of their own."""
    devices: int
    """That run it together."""

    def operations(self) -> Iterator[tuple[str, Operation, int]]:
        """Each operation that runs: its computation, itself, and how often."""
        for name, body in self.computations.items():
            if self.runs[name]:
                yield from ((name, operation, self.runs[name]) for operation in body.values())


@functools.cache
def bits(kind: str) -> int:
    """Of one number: `bf16` has 16, `f8e4m3fn` 8, `s4` 4; a `token` or `opaque` has none."""
    if kind == "pred":
        return 8
    found = BITS.match(kind)
    if found is None:
        return 0
    return 2 * int(found[1]) if kind[0] == "c" else int(found[1])


@functools.lru_cache(maxsize=100_000)
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, tuples taken apart."""
    return tuple(
        Array(kind, tuple(int(n) for n in dims.split(",") if n), layout) for kind, dims, layout in ARRAY.findall(text)
    )


def parse(text: str) -> Program:
    """Takes the text of a compiled program apart.

    All branches of a conditional count as run, of which one is: the training step has none.

    Raises:
        UserError: the trip count of a loop is not known.
    """
    computations: dict[str, dict[str, Operation]] = {}
    body: dict[str, Operation] = {}
    entry = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            body = computations[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif found := OPERATION.match(line):
            operation = _operation(found)
            body[operation.name] = operation
        elif body and line.strip("} "):  # a kernel's metadata breaks the line of its operation
            last = next(reversed(body.values()))
            body[last.name] = last._replace(attributes=f"{last.attributes}\n{line}")
    runs = dict.fromkeys(computations, 0)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for operation in computations[name].values():
            for callee in called(operation):
                visit(callee, times * _trips(operation, computations[name], computations))

    visit(entry, 1)
    within = [callee for o in _all(computations.values()) if o.kind not in LOUD for callee in called(o)]
    return Program(computations, entry, runs, frozenset(within), _devices(text))


LOUD = ("while", "conditional", "call")
"""Operations that run whole computations; all others that name one make it a part of themselves."""


def called(operation: Operation) -> Iterator[str]:
    """The computations that an operation runs. The end of an asynchronous one names what its start ran."""
    if "=" in operation.attributes and not operation.kind.endswith(("-done", "-update")):
        yield from CALLED.findall(operation.attributes)
        for names in BRANCHES.findall(operation.attributes):
            yield from (name.strip().lstrip("%") for name in names.split(","))


def _devices(text: str) -> int:
    """The partitions and replicas that the first line of a program tells of, where they are more than one."""
    head = text.partition("\n")[0]
    return math.prod(int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head))


def _all(bodies: Iterable[dict[str, Operation]]) -> Iterator[Operation]:
    for body in bodies:
        yield from body.values()


def _operation(found: re.Match[str]) -> Operation:
    inside, after = _closed(found["rest"])
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    if found["kind"] in ("constant", "parameter", "iota"):
        after, operands = f"({inside}){after}", ()
    return Operation(found["name"], found["kind"], found["type"], operands, after, bool(found["root"]))


def _closed(rest: str) -> tuple[str, str]:
    """What is before the parenthesis that closes the operands, and what follows it."""
    depth = 1
    for mark in re.finditer(r"[()]", rest):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            return rest[: mark.start()], rest[mark.end() :]
    return rest, ""


TURNED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}
"""Comparisons, and what they are with their operands exchanged."""


def _trips(operation: Operation, body: dict[str, Operation], computations: dict[str, dict[str, Operation]]) -> int:
    """How often one run of this operation, which stands in `body`, runs what it calls.

    XLA on CPU and GPU writes the trip count of a loop down. On TPU it follows from the constant that the counter is
    held against, from its step, and from the constant that it starts at: 0 in a scan, and 1 where the compiler took
    the first turn out of the loop.
    """
    if operation.kind != "while":
        return 1
    if trips := TRIPS.search(operation.attributes):
        return int(trips[1])
    named = dict(re.findall(r"(condition|body)=%?([\w.-]+)", operation.attributes))
    condition, turn = (computations.get(named.get(name, ""), {}) for name in ("condition", "body"))
    for compare in condition.values():
        if compare.is_root and compare.kind == "compare":
            direction = re.findall(r"direction=(\w+)", compare.attributes)[0]
            counter, bound = compare.operands
            if _constant(bound, condition) is None:
                counter, bound, direction = bound, counter, TURNED.get(direction, direction)
            end, place = _constant(bound, condition), _place(counter, condition)
            turns = None if end is None else _turns(direction, end - _start(operation, place, body), _step(turn, place))
            if turns is not None:
                return turns
    raise UserError(f"a loop whose trip count is not known: %{operation.name} = {operation.attributes.strip():.300}")


def _turns(direction: str, distance: int, step: int) -> int | None:
    """How often a counter that begins `distance` before its bound can take `step` and hold; none is not known."""
    if step < 0:
        direction, distance, step = TURNED.get(direction, direction), -distance, -step
    if direction == "LT" or (direction == "NE" and step and distance % step == 0):
        return max(0, -(-distance // step)) if step else None
    return max(0, distance // step + 1) if direction == "LE" and step else None


def _place(counter: str, condition: dict[str, Operation]) -> int | None:
    """Where in the state of a loop its counter is."""
    operation = _made(counter, condition)
    index = operation and re.search(r"index=(\d+)", operation.attributes)
    return int(index[1]) if index else None


def _start(loop: Operation, place: int | None, body: dict[str, Operation]) -> int:
    """The constant that the counter of a loop begins at; 0 where the text does not tell."""
    state = body.get(loop.operands[0]) if loop.operands else None
    if place is None or state is None or state.kind != "tuple":
        return 0
    return _constant(state.operands[place], body) or 0


def _step(turn: dict[str, Operation], place: int | None) -> int:
    """The constant that one turn of a loop adds to its counter; 1 where the text does not tell."""
    root = next((operation for operation in turn.values() if operation.is_root), None)
    if place is None or root is None or root.kind != "tuple":
        return 1
    added = _made(root.operands[place], turn)
    if added is None or added.kind != "add":
        return 1
    return next((n for n in (_constant(name, turn) for name in added.operands) if n is not None), 1)


def _constant(name: str, body: dict[str, Operation]) -> int | None:
    """The number that an operation is."""
    operation = _made(name, body)
    number = re.match(r"\((-?\d+)\)", operation.attributes) if operation and operation.kind == "constant" else None
    return int(number[1]) if number else None


def _made(name: str, body: dict[str, Operation]) -> Operation | None:
    """The operation of that name, copies looked through."""
    operation = body.get(name)
    while operation is not None and operation.kind in ("copy", "bitcast", "copy-done", "copy-start"):
        operation = body.get(operation.operands[0])
    return operation
