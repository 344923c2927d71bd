"""What a mesh cannot cut, and what it leaves whole, told from shapes before anything is made.

Nothing here imports jax.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxllm.common.axes import ALWAYS, LEGEND
from jaxllm.config import AXES, RunConfig
from jaxllm.models.adapters import block_size, frozen_table, kept_as, trained_table, whole_table
from jaxllm.models.summary import Memory, memory
from jaxllm.models.table import Param
from jaxllm.sharding.axes import RULES, cuts, cuts_on

NOTICEABLE = 1 << 30
"""Bytes that a device may hold beyond its even share before anybody is told."""

BLOCKS = "tuning.base_dtype"
"""The field that keeps numbers in blocks, which cannot be cut."""

CUT_FROM = Memory(parameters=3, gradients=2, optimizer=1, ema=1, frozen=3)
"""The ZeRO stage from which on each part of the state is cut along `fsdp`."""


def mesh_sizes(config: RunConfig, devices: int | None) -> dict[str, int]:
    """Devices along each axis of a valid mesh. A -1 counts as 1 where the number of devices is not known."""
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    left = 1 if devices is None else devices // known
    return {axis: left if size == -1 else size for axis, size in sizes.items()}


def mesh_mistakes(config: RunConfig, devices: int | None) -> Iterator[str]:
    """What is wrong with the mesh by itself, then with what it cuts."""
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    asked = "mesh is " + " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            yield f"mesh.{axis} = {size}: must be at least 1, or -1 to fill it with what is left"
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        yield f"{asked}: only one axis may be -1; 1 would do for the others"
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        return
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices is not None and not free and known != devices:
        yield f"{asked}: makes {known} devices, and there are {devices}; -1 fills one axis with what is left"
    elif devices is not None and free and devices % known:
        yield (
            f"{asked}: {known} does not divide the {devices} devices there are; "
            f"{neighbours(divisors(devices), known)} would do for the other axes together"
        )
    else:
        devices = devices if free else known
        sizes = mesh_sizes(config, devices)
        yield from _batch_mistakes(config, sizes)
        model = config.model
        if all(getattr(model, LEGEND[letter]) > 0 for letter in ALWAYS) and (model.encoder_layers or 1) > 0:
            yield from parameter_mistakes(config, devices)
            yield from _block_mistakes(config, devices)


def parameter_mistakes(config: RunConfig, devices: int | None, rules: dict[str, str | None] = RULES) -> Iterator[str]:
    """Parameters that `rules` cannot cut along a mesh which makes that many devices, one line for each cause."""
    sizes = mesh_sizes(config, devices)
    paths: dict[tuple[str, str], list[str]] = {}
    for path, leaf in whole_table(config).items():
        try:
            axes = cuts(leaf.axes, rules)
        except ValueError as error:
            yield f"parameter '{path}': {error}"
            continue
        for letter, by in zip(leaf.axes, axes, strict=True):
            for axis in by:
                paths.setdefault((letter, axis), []).append(path)
    for (letter, axis), (path, *others) in paths.items():
        size = getattr(config.model, LEGEND[letter])
        if size % sizes[axis]:
            mesh = _fitting_meshes(config, devices, axis)
            yield (
                f"model.{LEGEND[letter]} = {size}: mesh.{axis} = {sizes[axis]} does not divide it, the axis {letter} "
                f"of parameter '{path}'{f' and {len(others)} more' if others else ''}; "
                f"{_fitting_sizes(config, letter, sizes[axis])}{mesh and f', or {mesh},'} would do"
            )


def _block_mistakes(config: RunConfig, devices: int | None) -> Iterator[str]:
    """Blocks of a frozen base's numbers that a mesh would cut, one line for each of its axes."""
    sizes, found = mesh_sizes(config, devices), dict[str, list[tuple[str, int]]]()
    for path, length, axis in _cut_blocks(config, sizes):
        found.setdefault(axis, []).append((path, length))
    for axis, [(path, length), *others] in found.items():
        stage = f"mesh.zero_stage = {CUT_FROM.frozen - 1}" if axis == "fsdp" else ""
        remedies = [_fitting_meshes(config, devices, axis), stage, f"{BLOCKS} = 'bfloat16'"]
        yield (
            f"{BLOCKS} = {config.tuning.base_dtype!r}: mesh.{axis} = {sizes[axis]} cuts blocks of {block_size(length)} "
            f"numbers, which share a scale, at the last axis, {length} long, of parameter '{path}'"
            f"{f' and {len(others)} more' if others else ''}; {', or '.join(filter(None, remedies))} would do"
        )


def _cut_blocks(config: RunConfig, sizes: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Frozen matrices whose numbers that share a scale would come to lie on several devices: the path, the length of
    the last axis, and what cuts it."""
    is_whole = config.mesh.zero_stage < CUT_FROM.frozen
    for path, leaf in frozen_table(config).items():
        if kept_as(path, leaf, config.tuning.base_dtype) not in ("int8", "nf4"):
            continue
        length = leaf.shape[-1]
        for axis in cuts(leaf.axes)[-1]:
            own, rest = divmod(length, sizes[axis])
            if not rest and own % block_size(length) and not (is_whole and axis == "fsdp"):
                yield path, length, axis


def _fitting_sizes(config: RunConfig, letter: str, of: int) -> str:
    """The multiples of `of` next to the size of an axis of the model, of those that the rest of the run allows."""
    model, size = config.model, getattr(config.model, LEGEND[letter])
    if letter == "N" and model.kv_heads % of:
        return f"{multiples(size, of)} with model.kv_heads = {of}"
    if letter == "N":
        return multiples(size, math.lcm(of, model.kv_heads))
    if letter == "K" and model.heads % of:
        return f"{of} with model.heads = {multiples(model.heads, of)}"
    if letter == "K":
        return neighbours([n for n in divisors(model.heads) if n % of == 0], size)
    holds_tokenizer = letter == "V" and config.tokenizer.path is None
    return multiples(size, of, least=config.tokenizer.vocab_size if holds_tokenizer else 1)


def _fitting_meshes(config: RunConfig, devices: int | None, axis: str) -> str:
    """`mesh.axis = N or M`: the sizes next to that of an axis that divide all it cuts, and break nothing else."""
    is_filled = devices is None or any(getattr(config.mesh, other) == -1 for other in AXES if other != axis)
    filling: dict[str, Any] = {} if is_filled else {"data": -1}
    common = math.gcd(*(size for _, by, size in _sizes_cut(config) if by == axis))
    before = _misfits(config, devices) - {f"{BLOCKS} along {axis}"}

    def fits(size: int) -> bool:
        changed = replace(config, mesh=replace(config.mesh, **{axis: size, **filling}))
        return _misfits(changed, devices) <= before

    found = neighbours([size for size in divisors(common) if fits(size)], mesh_sizes(config, devices)[axis])
    return found and f"mesh.{axis} = {found}{'' if is_filled else ' with mesh.data = -1'}"


def _misfits(config: RunConfig, devices: int | None) -> set[str]:
    """The fields that do not suit the mesh; `mesh` where it does not make the devices."""
    sizes = mesh_sizes(config, devices)
    if devices is not None and math.prod(sizes.values()) != devices:
        return {"mesh"}
    uneven = {f"model.{field}" for field, axis, size in _sizes_cut(config) if size % sizes[axis]}
    blocks = {f"{BLOCKS} along {axis}" for _, _, axis in _cut_blocks(config, sizes)}
    return uneven | blocks | {line.partition(" = ")[0] for line in _batch_mistakes(config, sizes)}


def _sizes_cut(config: RunConfig) -> set[tuple[str, str, int]]:
    """The fields of the model that are cut, each with the axis of the mesh that does so and its size."""
    letters = {
        (letter, axis)
        for leaf in whole_table(config).values()
        for letter, by in zip(leaf.axes, cuts(leaf.axes), strict=True)
        for axis in by
    }
    return {(LEGEND[letter], axis, getattr(config.model, LEGEND[letter])) for letter, axis in letters}


def _batch_mistakes(config: RunConfig, sizes: Mapping[str, int]) -> Iterator[str]:
    train, length, rows = config.train, config.data.sequence_length, sizes["data"] * sizes["fsdp"]
    whole = rows * train.accumulate
    if is_multiple(train.batch_size, train.accumulate) and not is_multiple(train.batch_size, whole):
        yield (
            f"train.batch_size = {train.batch_size}: each of the train.accumulate = {train.accumulate} parts "
            f"must be a multiple of mesh data {sizes['data']} x fsdp {sizes['fsdp']} = {rows} rows; "
            f"{multiples(train.batch_size, whole)} would do"
        )
    if sizes["sequence"] > 1 and (config.model.architecture != "decoder" or config.model.positions == "relative"):
        yield (
            f"mesh.sequence = {sizes['sequence']}: only rows of a decoder without relative positions can be cut, and "
            f"model.architecture = {config.model.architecture!r}, model.positions = {config.model.positions!r}; "
            "1 would do"
        )
    chunks = 2 * sizes["sequence"]
    if sizes["sequence"] > 1 and not is_multiple(length, chunks):
        yield (
            f"data.sequence_length = {length}: each of the mesh.sequence = {sizes['sequence']} devices takes two equal "
            f"parts of a row; {multiples(length, chunks)} would do"
        )


def state_on_devices(config: RunConfig, platform: str) -> Memory:
    """Bytes of the state and the gradients in the memory of the devices, all together.

    An offloaded optimizer is not in it, except on CPU, where the host's memory is the device's.
    """
    parts = memory(config)
    return parts._replace(optimizer=0) if config.train.offload_optimizer and platform != "cpu" else parts


def replicated(config: RunConfig, sizes: Mapping[str, int], platform: str) -> str | None:
    """A warning where each device holds `NOTICEABLE` bytes more than its even share of the state; names the largest.

    Of the parameters, gradients, optimizer state and moving average; activations are not counted.
    """
    devices, beyond = math.prod(sizes.values()), {}
    parts, table = state_on_devices(config, platform), whole_table(config)
    for name, part, first in zip(parts._fields, parts, CUT_FROM, strict=True):
        own = frozen_table(config) if name == "frozen" else trained_table(config)
        numbers = sum(leaf.size for leaf in own.values())
        for path, leaf in own.items():
            by = _cut_by(sizes, leaf)
            axes = by if config.mesh.zero_stage >= first else by - {"fsdp"}
            held = part * leaf.size / numbers / math.prod(sizes[axis] for axis in axes)
            beyond[path, name] = held - part * leaf.size / numbers / devices
    if sum(beyond.values()) <= NOTICEABLE:
        return None
    (path, name), most = max(beyond.items(), key=lambda item: item[1])
    leaf, what = table[path], {"frozen": "frozen numbers"}.get(name, name)
    shape = ", ".join(f"{letter} {size}" for letter, size in zip(leaf.axes, leaf.shape, strict=True))
    mesh = " x ".join(f"{axis} {sizes[axis]}" for axis in AXES)
    stage = f", with mesh.zero_stage = {config.mesh.zero_stage}" if config.mesh.zero_stage < 3 else ""
    return (
        f"each device holds {sum(beyond.values()) / 2**30:,.1f} GiB more than its even share of the model's state, "
        f"on a mesh of {mesh}{stage}: {most / 2**30:,.1f} GiB of them are the {what} of '{path}' ({shape}); "
        f"{_remedy(config, sizes, leaf, getattr(CUT_FROM, name))}"
    )


def _remedy(config: RunConfig, sizes: Mapping[str, int], leaf: Param, first: int) -> str:
    """What would cut a part of the state of `leaf`, cut along `fsdp` from the ZeRO stage `first` on, once more."""
    own, is_low = _cut_by(sizes, leaf), config.mesh.zero_stage < first
    highest: Any = max(first, config.mesh.zero_stage)
    raised = replace(config, mesh=replace(config.mesh, zero_stage=highest))
    stage = [f"mesh.zero_stage = {first}"] if is_low else []

    def fits(fsdp: int) -> bool:
        changed = {**sizes, "fsdp": fsdp}
        return "fsdp" in _cut_by(changed, leaf) and not any(_cut_blocks(raised, changed))

    fitting = [n for n in divisors(sizes["fsdp"])[1:] if fits(n)]
    if fitting and (is_low or "fsdp" not in own):
        data = sizes["data"] * sizes["fsdp"] // fitting[-1]
        smaller = [f"mesh.fsdp = {fitting[-1]}", f"mesh.data = {data}"] if fitting[-1] < sizes["fsdp"] else []
        return f"{' and '.join([*smaller, *stage])} would cut it"
    if not own:
        return "no mesh cuts it"
    others = [axis for axis in AXES if sizes[axis] > 1 and axis not in own]
    grown = [sizes["fsdp"] * n for n in divisors(math.prod(sizes[axis] for axis in others))[1:]]
    blocks = [] if min(own) != "fsdp" or any(map(fits, grown)) else [f"{BLOCKS} = 'bfloat16'"]
    place = " or ".join(f"mesh.{axis}" for axis in others)
    return f"{' and '.join([f'a larger mesh.{min(own)} in the place of {place}', *stage, *blocks])} would cut it"


def _cut_by(sizes: Mapping[str, int], leaf: Param) -> set[str]:
    """The axes of the mesh that cut a parameter."""
    return {axis for by in cuts_on(sizes, leaf) for axis in by}


def divisors(number: int) -> list[int]:
    """All that divide a positive number."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def is_multiple(size: int, of: int) -> bool:
    """Whether `of` divides `size`. Sizes that are not positive are told of elsewhere."""
    return size < 1 or of < 1 or size % of == 0


def multiples(size: int, of: int, least: int = 1) -> str:
    """The multiples of `of` next to `size`, of those that are at least `least`."""
    below = size // of * of
    above = max(below + of, math.ceil(least / of) * of)
    return f"{below} or {above}" if below >= least else str(above)


def neighbours(fitting: list[int], value: int) -> str:
    """The neighbours of `value` among the `fitting`."""
    below, above = [n for n in fitting if n < value], [n for n in fitting if n > value]
    return " or ".join(map(str, below[-1:] + above[:1]))
