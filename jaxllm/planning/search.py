"""Meshes, ZeRO stages, rows at once and remat policies for a recipe, ranked by what the compiled steps promise."""

import dataclasses
import time
import typing
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxllm.common.console import plain_console
from jaxllm.config import MeshConfig, RunConfig, TrainConfig, UserError
from jaxllm.planning.cheap import SLACK, guess
from jaxllm.planning.compilation import Compiled, TooLarge, compile_step, for_platform
from jaxllm.planning.report import Plain, describe, size
from jaxllm.planning.topology import Target
from jaxllm.sharding.preflight import divisors, neighbours
from jaxllm.train.report import duration
from jaxllm.validation import problems

Compile = Callable[[RunConfig, Target], Compiled | TooLarge]
Describe = Callable[[Compiled | TooLarge, Target], Plain]

TENSOR = 8
"""The widest tensor axis that is tried."""

LONG = 32_768
"""Tokens of a row from which on it is also cut along `sequence`: one row alone fills a device then."""

PIECE = 256
"""The fewest tokens of a row that a device is left with: two parts of 128, which are a tile of the TPU."""


def candidates(config: RunConfig, asked: Target) -> Iterator[RunConfig]:
    """Every variant that holds together on the machine. The batch of a step stays: rows at once follow `accumulate`."""
    policies, stages = _choices(TrainConfig, "remat"), _choices(MeshConfig, "zero_stage")
    batch = config.train.batch_size
    for mesh in _meshes(config, asked):
        at_least = mesh.data * mesh.fsdp
        all_parts = divisors(batch // at_least) if batch % at_least == 0 else []
        for parts, stage in product(all_parts, stages if mesh.fsdp > 1 else [mesh.zero_stage]):
            train = dataclasses.replace(config.train, accumulate=parts)
            variant = dataclasses.replace(config, mesh=dataclasses.replace(mesh, zero_stage=stage), train=train)
            if problems(variant, asked.devices):
                continue  # for any policy
            for policy in policies:
                yield dataclasses.replace(variant, train=dataclasses.replace(train, remat=policy))


def search(
    config: RunConfig,
    asked: Target,
    tries: int,
    compile: Compile = compile_step,
    describe: Describe = describe,
    tell: Callable[[str], None] = lambda line: None,
) -> Plain:
    """Ranks the candidates: guesses at all, drops those that cannot fit, compiles the best `tries`.

    What it does, which takes a minute for each of them, it tells in lines.

    Returns:
        `{"tried", "too_large", "not_compiled", "failed", "ranked": [plan of `describe` with "guess", ...]}`, fitting
        ones first, then by the slower end of the predicted time, or on CPU by the memory. `failed` tells of variants
        that could not be traced or compiled.

    Raises:
        UserError: nothing holds together on the machine, nothing can fit, or nothing compiles.
    """
    config = for_platform(config, asked.chip.platform)
    guessed = [(variant, guess(variant, asked)) for variant in candidates(config, asked)]
    if not guessed:
        raise UserError(
            f"--search: no mesh of {asked.devices} devices holds together with train.batch_size = "
            f"{config.train.batch_size} and the sizes of the model; a batch of a multiple of {asked.devices} would do"
        )
    there = asked.memory_bytes
    fitting = [(v, g) for v, g in guessed if not there or g.bytes <= SLACK * there]
    if not fitting:
        least = min(g.bytes for _, g in guessed)
        raise UserError(
            f"--search: nothing that was tried can fit: the smallest needs about {size(least)} of {size(there)} on "
            f"each device; take a larger topology than {asked.name}, or a smaller model or batch"
        )
    fitting.sort(key=lambda pair: (0 < there < pair[1].bytes, pair[1].seconds, pair[1].bytes))
    plans: list[Plain] = []
    failed: list[str] = []
    best, began = fitting[:tries], time.monotonic()
    tell(f"{len(guessed):,} variants, of which {len(fitting):,} may fit")
    for done, (variant, cheap) in enumerate(best):
        left = f", {duration((time.monotonic() - began) / done * (len(best) - done))} left" if done else ""
        tell(f"compiling {done + 1} of {len(best)}{left}: {_short(variant)}")
        try:
            plans.append({**describe(compile(variant, asked), asked), "guess": cheap._asdict()})
        except Exception as error:  # one variant must not lose the minutes that went into the others
            failed.append(f"{_short(variant)}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    if failed and not plans:
        raise UserError(f"--search: nothing that was tried compiles: {failed[0]}")
    plans.sort(key=_rank)
    return {
        "topology": asked.name,
        "tried": len(guessed),
        "too_large": len(guessed) - len(fitting),
        "not_compiled": max(0, len(fitting) - tries),
        "failed": failed,
        "ranked": plans,
    }


def _short(config: RunConfig) -> str:
    mesh, train = config.mesh, config.train
    sizes = " x ".join(f"{name} {value}" for name, value in vars(mesh).items())
    return f"{sizes}, accumulate {train.accumulate}, remat {train.remat}"


def _rank(plan: Plain) -> tuple[bool, float]:
    prediction = plan.get("prediction")
    if prediction:
        return plan["fits"] is False, prediction["seconds"][1]
    return plan["fits"] is False, plan["memory"].get("peak", plan["guess"]["bytes"])


def _choices(cls: type, field: str) -> tuple[Any, ...]:
    """What a field with a closed list of values takes."""
    return typing.get_args(typing.get_type_hints(cls)[field])


def _meshes(config: RunConfig, asked: Target) -> Iterator[MeshConfig]:
    """All ways to cut the devices; replicas and fsdp may lie over slices or hosts, the others stay within one."""
    within = asked.devices // asked.domains
    for sequence in _sequences(config, asked):
        for tensor in (n for n in divisors(within // sequence) if n <= TENSOR):
            rows = asked.devices // sequence // tensor
            for data in divisors(rows):
                yield dataclasses.replace(config.mesh, data=data, fsdp=rows // data, sequence=sequence, tensor=tensor)


def _sequences(config: RunConfig, asked: Target) -> list[int]:
    """Parts that rows are cut into: as the recipe says, and all that do where rows are `LONG` or too few.

    Raises:
        UserError: no slice or host can be cut as the recipe says.
    """
    own, length, within = config.mesh.sequence, config.data.sequence_length, asked.devices // asked.domains
    if own != -1 and within % own:
        raise UserError(
            f"--search: mesh.sequence = {own} does not divide the {within} devices of one slice or host of "
            f"{asked.name}; {neighbours(divisors(within), own)} would do"
        )
    tried = {1 if own == -1 else own}
    is_open = own == -1 or length >= LONG or config.train.batch_size < asked.devices
    if is_open and config.train.attention in ("auto", "xla"):  # no kernel attends in a ring
        tried |= {n for n in divisors(within) if length % (2 * n) == 0 and length // n >= PIECE}
    return sorted(tried)


def show_ranking(ranking: Plain, console: Console | None = None) -> None:
    """Prints what `search` gave."""
    out = console or plain_console()
    table = Table(title=f"The best for {ranking['topology']}", title_justify="left", title_style="")
    for column in ("mesh", "ZeRO", "rows at once x parts", "remat", "memory", "tokens/s a chip", "MFU", "bound"):
        table.add_column(column)
    for plan in ranking["ranked"]:
        table.add_row(*_cells(plan))
    out.print(table)
    for line in ranking["failed"]:
        out.print(f"failed: {line}", highlight=False, soft_wrap=True)
    out.print(
        f"{ranking['tried']:,} variants: {ranking['too_large']:,} cannot fit, {ranking['not_compiled']:,} come later "
        f"in the cheap model and were not compiled (--tries compiles more)",
        highlight=False,
        soft_wrap=True,
    )


def _cells(plan: Plain) -> list[str]:
    run, memory, prediction = plan["run"], plan["memory"], plan.get("prediction")
    mesh = " ".join(f"{axis} {count}" for axis, count in run["mesh"].items())
    at_once = run["batch_size"] // run["accumulate"] // (run["mesh"]["data"] * run["mesh"]["fsdp"])
    cells = [mesh, str(run["zero_stage"]), f"{at_once} x {run['accumulate']}", run["remat"]]
    if plan["fits"] is False:
        return [*cells, f"{size(memory.get('peak', memory.get('needed')))}: does not fit", "", "", ""]
    cells.append(size(memory["peak"]))
    if prediction is None:
        return [*cells, "", "", ""]
    (low, high), (worst, best) = prediction["tokens_per_second_chip"], prediction["mfu"]
    return [*cells, f"{low:,.0f} to {high:,.0f}", f"{worst:.0%} to {best:.0%}", prediction["bound"]]
