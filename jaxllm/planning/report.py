"""What `jaxllm plan` says of one step on one machine: plain values for JSON, and the same as text."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxllm.common.console import plain_console
from jaxllm.config import AXES
from jaxllm.planning.compilation import Compiled, TooLarge
from jaxllm.planning.memory import Memory, Tensor, largest, memory_of, refused
from jaxllm.planning.predict import model_flops, predict, visible_share
from jaxllm.planning.program import Collective, collectives
from jaxllm.planning.topology import Target
from jaxllm.planning.work import work
from jaxllm.sharding.preflight import replicated

Plain = dict[str, Any]


def describe(outcome: Compiled | TooLarge, asked: Target) -> Plain:
    """All that is told of a compiled, or refused, step: numbers, texts, lists and dicts only. Bytes are one device's.

    `fits` is none where the memory of the machine is not known.
    """
    mesh = outcome.config.mesh
    run: Plain = {
        "name": outcome.config.name,
        "topology": asked.name,
        "chips": asked.chips,
        "devices": asked.devices,
        "mesh": {axis: getattr(mesh, axis) for axis in AXES},
        "zero_stage": mesh.zero_stage,
        "batch_size": outcome.config.train.batch_size,
        "accumulate": outcome.config.train.accumulate,
        "sequence_length": outcome.config.data.sequence_length,
        "remat": outcome.config.train.remat,
        "compute_dtype": outcome.config.train.compute_dtype,
    }
    warning = replicated(outcome.config, run["mesh"], asked.chip.platform)
    if isinstance(outcome, TooLarge):
        memory = {"needed": outcome.needed, "available": outcome.available}
        return {
            "run": run,
            "warning": warning,
            "fits": False,
            "memory": memory,
            "largest": _plain(refused(outcome)),
            "refused": outcome.message,
        }
    memory_there = asked.memory_bytes
    parts = memory_of(outcome)
    done = work(outcome.program, visible_share(outcome.config))
    met = collectives(outcome.program, outcome.domains, outcome.torus)
    needed = model_flops(outcome.config)
    prediction = predict(outcome.config, asked, done, met)
    return {
        "run": run,
        "warning": warning,
        "fits": parts.peak <= memory_there if memory_there else None,
        "memory": {**parts._asdict(), "available": memory_there or None},
        "largest": _plain(largest(outcome)),
        "flops": {
            "model": needed,
            "executed": done.flops * asked.devices,
            "executed_over_model": done.flops * asked.devices / needed,
            "in_kernels": done.kernel_flops * asked.devices,
        },
        "work_of_a_device": done._asdict(),
        "collectives": _by_kind(met, asked),
        "seconds": {"lowering": outcome.lowering_seconds, "compiling": outcome.compile_seconds},
        "prediction": None if prediction is None else _predicted(prediction._asdict()),
    }


def _plain(tensors: list[Tensor]) -> list[Plain]:
    return [tensor._asdict() for tensor in tensors]


def _predicted(values: Plain) -> Plain:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _by_kind(met: list[Collective], asked: Target) -> list[Plain]:
    """Collectives added up by kind, devices in a group, and link; `bytes` are whole buffers, `sent` is a ring's."""
    count: Counter[tuple[str, int, str]] = Counter()
    size: Counter[tuple[str, int, str]] = Counter()
    sent: dict[tuple[str, int, str], float] = {}
    for one in met:
        link = asked.chip.slow if one.domains > 1 else asked.chip.fast
        if one.domains > 1 and one.devices > one.domains:
            link = f"{asked.chip.fast} and {asked.chip.slow}"
        key = (one.kind, one.devices, link)
        count[key] += one.count
        size[key] += one.count * one.bytes
        sent[key] = sent.get(key, 0.0) + one.fast_traffic + one.slow_traffic
    return [
        {"kind": kind, "devices": devices, "link": link, "count": count[key], "bytes": size[key], "sent": sent[key]}
        for key in sorted(size, key=lambda key: -size[key])
        for kind, devices, link in [key]
    ]


def show(plan: Plain, console: Console | None = None) -> None:
    """Prints what `describe` gave."""
    out = console or plain_console()
    run = plan["run"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in run["mesh"].items())
    out.print(
        f"'{run['name']}' on {run['topology']}: {run['chips']:,} chips, {mesh}, ZeRO stage {run['zero_stage']}, "
        f"{run['batch_size']:,} rows of {run['sequence_length']:,} tokens in {run['accumulate']} part(s), "
        f"remat {run['remat']}, {run['compute_dtype']}",
        highlight=False,
        soft_wrap=True,
    )
    if plan["warning"]:
        out.print(f"warning: {plan['warning']}", highlight=False, markup=False, soft_wrap=True)
    out.print(_verdict(plan), highlight=False, soft_wrap=True)
    if "refused" not in plan:
        out.print(_memory(plan["memory"]))
    out.print(_largest(plan["largest"]))
    if "refused" in plan:
        out.print(plan["refused"], highlight=False, markup=False, soft_wrap=True)
        return
    flops = plan["flops"]
    out.print(
        f"FLOPs of a step, all devices: {flops['model']:.3e} of the model, {flops['executed']:.3e} executed "
        f"({flops['executed_over_model']:.2f} times)",
        highlight=False,
        soft_wrap=True,
    )
    out.print(_collectives(plan["collectives"]))
    seconds = plan["seconds"]
    out.print(f"traced in {seconds['lowering']:.1f} s, compiled in {seconds['compiling']:.1f} s", highlight=False)
    for line in _forecast(plan["prediction"], run):
        out.print(line, highlight=False, soft_wrap=True)


def size(count: float | None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return "?"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def _verdict(plan: Plain) -> str:
    memory = plan["memory"]
    needed, there = memory.get("peak", memory.get("needed")), memory["available"]
    if plan["fits"] is None:
        return f"needs {size(needed)} on each device (what this machine has is not held against it)"
    return f"{'fits' if plan['fits'] else 'does not fit'}: {size(needed)} of {size(there)} on each device"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _memory(memory: Plain) -> Table:
    table = _table("Memory of a device", "what", "size")
    for name in Memory._fields:
        if memory[name] and name not in ("host", "peak"):
            table.add_row(name.replace("_", " "), size(memory[name]))
    table.add_section()
    table.add_row("most at once", size(memory["peak"]))
    if memory["host"]:
        table.add_section()
        table.add_row("in the host's memory", size(memory["host"]))
    return table


def _largest(tensors: list[Plain]) -> Table:
    table = _table("Largest tensors on a device", "name", "type", "size")
    for tensor in tensors:
        table.add_row(tensor["name"], tensor["what"], size(tensor["bytes"]))
    return table


def _collectives(rows: list[Plain]) -> Table:
    table = _table("Collectives of a step", "kind", "devices", "link", "count", "bytes", "a device sends")
    for row in rows:
        table.add_row(
            row["kind"], str(row["devices"]), row["link"], f"{row['count']:,}", size(row["bytes"]), size(row["sent"])
        )
    if not rows:
        table.add_row("none", "", "", "", "", "")
    return table


def _forecast(prediction: Plain | None, run: Plain) -> list[str]:
    if prediction is None:
        return [f"no time is predicted: there are no public figures for {run['topology'].partition(':')[0]}"]
    (fast, slow), (low, high), (worst, best) = (
        prediction[name] for name in ("seconds", "tokens_per_second_chip", "mfu")
    )
    parts = ", ".join(f"{name} {value:,.3f} s" for name, value in prediction["parts"].items() if value)
    return [
        f"predicted: {fast:,.3f} to {slow:,.3f} s a step, {low:,.0f} to {high:,.0f} tokens/s a chip, "
        f"MFU {worst:.1%} to {best:.1%}, bound by {prediction['bound']}",
        f"each part by itself: {parts}",
    ]
