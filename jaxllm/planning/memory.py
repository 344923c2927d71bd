"""The memory of one device, by what it holds: exact for the state, the compiler's own sizes for the rest."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import RunConfig
from jaxllm.models.adapters import trained_table
from jaxllm.planning.compilation import Compiled, TooLarge
from jaxllm.planning.text import Operation, called
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import gradient_specs
from jaxllm.train.state import State

IN_PLACE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
        *("opt-barrier", "copy-start", "slice-start", "send"),
    )
)
"""Operations whose results are other operations' memory, or a part of it that the compiler moves about."""


class Tensor(NamedTuple):
    """One array on one device."""

    name: str
    """Its path in the state; or the operation of the model that made it, as jax named it."""
    what: str
    """Type and shape on one device."""
    bytes: float
    """With the padding of its tiles where the program tells."""


class Memory(NamedTuple):
    """Bytes on one device."""

    parameters: int
    gradients: int
    """All of them, as they live before the optimizer; a part of the compiler's temporaries."""
    optimizer: int
    ema: int
    frozen: int
    """Parameters that are not trained."""
    batch_and_padding: int
    """The batch, counters, and what tiles add to the state."""
    activations: int
    """And all other temporaries: what the compiler counts beside the gradients."""
    code: int
    host: int
    """Not on the device: what it keeps in the memory of its host."""
    peak: int
    """The most at once on the device by the compiler; the groups need not add up to it, since temporaries share memory
    over time."""

    @property
    def state(self) -> int:
        """What stays from step to step."""
        return self.parameters + self.optimizer + self.ema + self.frozen


def memory_of(compiled: Compiled) -> Memory:
    """The memory of a compiled step, by group."""
    state, sizes = compiled.state, compiled.sizes
    trees = state.params, state.opt_state, state.ema, compiled.frozen
    parameters, optimizer, ema, frozen = map(device_bytes, trees)
    gradients = min(gradient_bytes(compiled.config, state), sizes.temporary)
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        ema=ema,
        frozen=frozen,
        batch_and_padding=max(0, sizes.arguments - parameters - optimizer - ema - frozen),
        activations=sizes.temporary - gradients + sizes.results,
        code=sizes.code,
        host=sizes.host,
        peak=sizes.peak,
    )


def device_bytes(tree: Any) -> int:
    """Of the arrays of a tree, on one device, without padding and without what lies in the memory of its host."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree) if _is_on_device(leaf))


def _is_on_device(leaf: jax.ShapeDtypeStruct) -> bool:
    return leaf.sharding is None or leaf.sharding.memory_kind != "pinned_host"


def gradient_bytes(config: RunConfig, state: State) -> int:
    """Of all gradients on one device, cut as the ZeRO stage says (`sharding/zero.py`)."""
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    specs = gradient_specs(table_specs(mesh.shape, trained_table(config)), config.mesh.zero_stage)

    def cut(leaf: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return device_bytes(jax.tree.map(cut, state.params, specs))


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
    count = 1
    for size in _shard(leaf):
        count *= size
    return count * leaf.dtype.itemsize


def _shard(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def largest(compiled: Compiled, most: int = 10) -> list[Tensor]:
    """The largest arrays of a step on one device: of the state, and of what the program makes in main memory.

    What the program makes need not live all at once, and results that take the place of an operand are counted once
    where the text tells. Arrays of one type, shape and origin are one entry.
    """
    found = {(t.name, t.what): t for t in [*_temporaries(compiled), *_arguments(compiled)]}
    return sorted(found.values(), key=lambda t: -t.bytes)[:most]


def _arguments(outcome: Compiled | TooLarge) -> Iterator[Tensor]:
    yield from state_tensors(outcome.state)
    yield from state_tensors({"frozen": outcome.frozen})


def state_tensors(state: Any) -> Iterator[Tensor]:
    """Each leaf of the state, or of a part of it, that lies on the device."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not _is_on_device(leaf):
            continue
        words = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        name = "/".join(word for word in words if not word.isdigit() and not word.startswith("inner_state"))
        yield Tensor(name, f"{leaf.dtype.name}{list(_shard(leaf))}".replace(" ", ""), _bytes(leaf))


def refused(outcome: TooLarge, most: int = 10) -> list[Tensor]:
    """The largest arrays that the compiler names when it refuses a program; those of the state where it names none."""
    named = [Tensor(short_name(a.source), a.shape.partition("{")[0], a.bytes) for a in outcome.largest]
    return sorted(named or _arguments(outcome), key=lambda t: -t.bytes)[:most]


def _temporaries(compiled: Compiled) -> Iterator[Tensor]:
    program = compiled.program
    for computation, operation, _ in program.operations():
        if computation in program.fused or operation.kind in IN_PLACE or operation.kind.endswith("-done"):
            continue
        body = program.computations[computation]
        over = _overwrites(operation, body, program.computations)
        for array in operation.arrays:
            if not array.is_on_chip and array.shape and (array.kind, array.shape) not in over:
                name = short_name(operation.source or _origin(operation, body))
                what = f"{array.kind}{list(array.shape)}".replace(" ", "")
                yield Tensor(name or f"({operation.kind})", what, array.padded_bytes)


def _overwrites(
    operation: Operation, body: dict[str, Operation], computations: dict[str, dict[str, Operation]]
) -> set[tuple[str, tuple[int, ...]]]:
    """Types of the operands that an operation updates in place: slices are written into them, or sums over devices."""
    kinds = {o.kind for name in called(operation) for o in computations[name].values()}
    if operation.kind == "all-reduce" or {operation.kind, *kinds} & {"dynamic-update-slice", "scatter"}:
        return {(a.kind, a.shape) for name in operation.operands if name in body for a in body[name].arrays}
    return set()


def _origin(operation: Operation, body: dict[str, Operation]) -> str:
    """The first name among an operation's operands, where the compiler made the operation itself."""
    return next((body[name].source for name in operation.operands if name in body and body[name].source), "")


def short_name(source: str) -> str:
    """jax's name of an operation without the words that say only how jax traced it."""
    words = ("jit(step)", "while", "body", "closed_call", "checkpoint", "eval_jaxpr", "cond", "shard_map", "vmap()")
    parts = [part for part in re.split(r"/", source.replace("\\", "")) if part and part not in words]
    return "/".join(parts)
