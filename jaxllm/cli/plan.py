"""`jaxllm plan`: what a recipe needs and how fast it will be on a machine that is not here."""

import json
import sys
from dataclasses import dataclass

from jaxllm.config import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """For which machine, and how it is told."""

    topology: str = ""
    """The machine: v5e:16x16 (TPU slices), 2xv5e:16x16 (two of them), h100:8, h100:4x8 (hosts x GPUs), cpu:8."""
    search: bool = False
    """Try meshes, ZeRO stages, rows at once and remat policies, and rank them."""
    tries: int = 6
    """Of those the cheap model thinks best, how many a search compiles."""
    json: bool = False
    """One JSON object in place of the tables."""


def run(argv: list[str]) -> int:
    """Compiles the training step of the recipe in `argv` for `--topology`, and prints what it needs and how fast it is.

    Neither data nor tokenizer are touched.

    Returns:
        0; or 1 where nothing that was tried fits.

    Raises:
        UserError: a recipe or topology that will not do, or a compiler that is not installed.
    """
    from jaxllm.cli.recipe import load_run_with
    from jaxllm.planning.topology import prepare, target

    config, options = load_run_with(argv, "jaxllm plan", Options(), _devices)
    if not options.topology:
        raise UserError("--topology is missing: name a machine, such as v5e:16x16, 2xv5e:16x16, h100:8 or cpu:8")
    if options.tries < 1:
        raise UserError(f"--tries {options.tries}: must be at least 1")
    machine = target(options.topology)
    prepare(machine)  # before jax is imported
    if options.search:
        from jaxllm.planning.search import search, show_ranking

        ranking = search(config, machine, options.tries, tell=_tell)
        print(json.dumps(ranking, indent=1)) if options.json else show_ranking(ranking)
        return 0 if any(row["fits"] is not False for row in ranking["ranked"]) else 1
    from jaxllm.planning.compilation import compile_step
    from jaxllm.planning.report import describe, show

    _tell(f"compiling the training step of '{config.name}' for {machine.name}")
    plan = describe(compile_step(config, machine), machine)
    print(json.dumps(plan, indent=1)) if options.json else show(plan)
    return 1 if plan["fits"] is False else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _devices(options: Options) -> int | None:
    """That the mesh is held against: a search makes its own."""
    from jaxllm.planning.topology import target

    return target(options.topology).devices if options.topology and not options.search else None
