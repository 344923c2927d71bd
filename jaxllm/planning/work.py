"""What one device computes and moves in a run of a compiled program, loops counted as often as they run."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxllm.planning.kernels import kernel_flops
from jaxllm.planning.text import Array, Operation, Program, called

FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "domain"),
        *("after-all", "partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done", "async-done"),
    )
)
"""Operations that move nothing themselves."""

SLICES = ("dynamic-slice", "slice", "gather")


class Work(NamedTuple):
    """Of one device in one run of the program."""

    flops: int
    """Of matrix products and convolutions, two for each multiplication and addition."""
    kernel_flops: int
    """Of attention kernels, and others that state their cost; part of `flops`. One that is not known counts nothing."""
    memory_bytes: int
    """Read from and written to the main memory, as if each operation read all of its inputs once."""
    cycles: int
    """The sum of the TPU compiler's own estimates; custom calls and waiting for others are not in it; 0 elsewhere."""


def work(program: Program, visible: float = 1.0) -> Work:
    """Adds up what each operation does, times how often it runs.

    `visible` is the share of all pairs of a query and a key that attention kernels see.
    """
    flops = kernels = moved = cycles = 0
    for computation, operation, runs in program.operations():
        body = program.computations[computation]
        if operation.kind in ("dot", "convolution"):
            flops += runs * product_flops(operation, body)
        elif operation.kind == "custom-call":
            kernels += runs * kernel_flops(operation, body, visible)
        if computation not in program.fused:
            moved += runs * _moved(operation, body, program)
            estimate = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
            cycles += runs * int(estimate[1]) if estimate else 0
    return Work(flops + kernels, kernels, moved, cycles)


def product_flops(operation: Operation, body: dict[str, Operation]) -> int:
    """FLOPs of one `dot` or `convolution` whose operands are made in `body`.

    A TPU writes every product as a convolution, a batched one with the batch as a dilated spatial dimension: only
    pairs of a place and a window's element that meet a number of the input count, as XLA counts them.
    """
    left, right = (_array(body[name]) for name in operation.operands[:2])
    out = operation.arrays[0]
    if operation.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
        dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
        return 2 * out.size * math.prod(left.shape[d] for d in dims)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    if labels is None:
        return 0
    inputs, kernel, outputs = labels.groups()
    groups = re.search(r"batch_group_count=(\d+)", operation.attributes)
    batch = left.shape[inputs.index("b")] // (int(groups[1]) if groups else 1)
    features = right.shape[kernel.index("i")] * right.shape[kernel.index("o")]
    window = _window(operation.attributes)
    met = 1
    for i, dimension in enumerate(sorted(label for label in inputs if label.isdigit())):
        sizes = [x.shape[where.index(dimension)] for x, where in ((left, inputs), (right, kernel), (out, outputs))]
        met *= meets(sizes, {name: values[i] for name, values in window.items() if i < len(values)})
    return 2 * batch * features * met


def _window(attributes: str) -> dict[str, list[str]]:
    """`{size, stride, pad, lhs_dilate, rhs_dilate, rhs_reversal}` of each spatial dimension, as XLA writes them."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = (field.split("=") for field in found[1].split()) if found else ()
    return {name: re.split(r"x", values) for name, values in fields}


def meets(sizes: Sequence[int], window: dict[str, str]) -> int:
    """Pairs of an output place and a kernel element that read a number of the input, along one dimension.

    `sizes` are those of input, kernel and output, `window` what XLA writes of the dimension.
    """
    size, kernel, out = sizes
    stride, low = int(window.get("stride", 1)), int(window.get("pad", "0_0").rpartition("_")[0])
    dilate, spread = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    common = math.gcd(stride, dilate)
    every = dilate // common  # of the places that read a number, the next one is so far away
    count = 0
    for begin in (element * spread - low for element in range(kernel)):  # of the place 0
        if begin % common == 0:
            first, last = max(0, -(begin // stride)), min(out - 1, ((size - 1) * dilate - begin) // stride)
            phase = -begin // common * pow(stride // common, -1, every) % every
            first += (phase - first) % every
            count += max(0, (last - first) // every + 1)
    return count


def _array(operation: Operation) -> Array:
    return operation.arrays[0]


def _moved(operation: Operation, body: dict[str, Operation], program: Program) -> int:
    """Bytes between the main memory and the chip for one operation that is not part of another."""
    if operation.kind in FREE or operation.kind.endswith("-done"):
        return 0
    if operation.kind in ("copy-start", "slice-start"):  # to or from the memory of the chip: it passes once
        return int(min((a.bytes for a in operation.arrays if a.shape), default=0))
    if operation.kind == "fusion":
        inner = program.computations[next(called(operation))]
        return int(sum(_read(operation, inner, body)) + _written(operation, inner))
    whole = sum(_main(a) for a in operation.arrays)
    if operation.kind in SLICES:
        return int(2 * whole)
    if operation.kind == "dynamic-update-slice":
        return int(2 * sum(_main(a) for a in body[operation.operands[1]].arrays))
    return int(whole + sum(_main(a) for name in operation.operands if name in body for a in body[name].arrays))


def _main(array: Array) -> float:
    return 0.0 if array.is_on_chip else array.bytes


def _read(operation: Operation, inner: dict[str, Operation], body: dict[str, Operation]) -> Iterator[float]:
    """Of each input of a fusion: only the slices where it takes slices, nothing where it writes into it."""
    for parameter in (o for o in inner.values() if o.kind == "parameter"):
        number = re.match(r"\((\d+)\)", parameter.attributes)
        source = body.get(operation.operands[int(number[1])]) if number else None
        if source is None or all(array.is_on_chip for array in source.arrays):
            continue
        whole = sum(_main(array) for array in source.arrays)
        names, parts = {parameter.name}, 0.0
        for user in inner.values():
            if user.operands and names & set(user.operands):
                if user.kind == "bitcast":
                    names.add(user.name)
                elif user.kind in SLICES and user.operands[0] in names:
                    parts += user.arrays[0].bytes
                elif not (user.kind == "dynamic-update-slice" and user.operands[0] in names):
                    parts = whole
                    break
        yield min(whole, parts)


def _written(operation: Operation, inner: dict[str, Operation]) -> float:
    """Of what a fusion makes: only the updates where it writes them into one of its inputs."""
    updates = [o for o in inner.values() if o.kind == "dynamic-update-slice" and o.operands[1] in inner]
    saved = sum(
        max(0.0, o.arrays[0].bytes - inner[o.operands[1]].arrays[0].bytes)
        for o in updates
        if any(made.shape == o.arrays[0].shape and not made.is_on_chip for made in operation.arrays)
    )
    return max(0.0, sum(_main(array) for array in operation.arrays) - saved)
