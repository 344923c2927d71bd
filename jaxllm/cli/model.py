"""`jaxllm model`: what a configuration costs, before anything is made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from jaxllm.cli.recipe import load_run_with
from jaxllm.common.console import plain_console
from jaxllm.models.summary import memory, parameters_by_module, run_flops


@dataclass(frozen=True)
class Options:
    """How it is printed."""

    json: bool = False
    """One JSON object in place of the tables."""


def run(argv: list[str]) -> int:
    """Prints parameters by module, training FLOPs a token, and bytes of state of the recipe in `argv`.

    Raises:
        UserError: a recipe that will not do.
    """
    config, options = load_run_with(argv, "jaxllm model", Options())
    model, length = config.model, config.data.sequence_length
    parameters = parameters_by_module(model)
    flops = run_flops(config)._asdict()
    state = memory(config)._asdict()
    if options.json:
        costs = {"parameters": parameters, "flops_per_token": flops, "memory_bytes": state}
        print(json.dumps({name: {**parts, "total": sum(parts.values())} for name, parts in costs.items()}, indent=1))
        return 0
    _show(f"Parameters of '{config.name}'", parameters)
    _show(f"Training FLOPs a token, rows of {length:,} tokens, attention counted causally", flops)
    _show(f"Bytes of state and gradients with {config.optimizer.kind}, all devices together", state)
    return 0


def _show(title: str, parts: Mapping[str, int]) -> None:
    """Each part that there is with its share, and their sum."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    total = sum(parts.values())
    for name, size in parts.items():
        if size:
            table.add_row(name, f"{size:,}", f"{size / total:.1%}")
    table.add_section()
    table.add_row("together", f"{total:,}", "")
    console = plain_console()
    console.print(title)
    console.print(table)
