"""What `jaxllm adapter show` prints."""

import numpy as np
from rich.table import Table

from jaxllm.cli.adapter_runs import Adapter
from jaxllm.common.console import plain_console
from jaxllm.models.adapters import VIRTUAL, updates
from jaxllm.models.table import parameter_table


def show(adapter: Adapter) -> None:
    """Method, size and base, then the ranks and scales of updates, what AdaLoRA has left of them, and gates."""
    console = plain_console()
    console.print(_summary(adapter))
    if updates(adapter.config.model, adapter.config.tuning):
        console.print(_updates(adapter))
    if adapter.config.tuning.method == "adalora":
        console.print(_ranks_left(adapter))
    if adapter.config.tuning.method == "hybrid":
        console.print(_gates(adapter))


def _summary(adapter: Adapter) -> Table:
    config, origin = adapter.config, adapter.origin
    tuning = config.tuning
    count = sum(leaf.size for leaf in adapter.leaves.values())
    size = sum(leaf.nbytes for leaf in adapter.leaves.values())
    whole = sum(leaf.size for leaf in parameter_table(config.model).values())
    rows = {
        "method": f"{tuning.method}, DoRA" if tuning.lora.magnitudes else tuning.method,
        "checkpoint": f"step {adapter.step}",
        "trained parameters": f"{count:,}, {count / whole:.3%} of the base's {whole:,}",
        "size": f"{size:,} bytes",
        "base": str(config.base),
        "its checkpoint": "not known" if origin is None else f"step {origin.step}",
        "its fingerprint": (origin and origin.fingerprint) or "not known",
    }
    if tuning.method in VIRTUAL:
        rows["virtual tokens"] = str(tuning.prompt.length)
    if tuning.also:
        rows["also of the base"] = ", ".join(tuning.also)
    table = Table("", "", title=f"Adapter '{adapter.folder}'", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _updates(adapter: Adapter) -> Table:
    table = Table("module", "layers", "rank", "alpha", "scale", "parameters", title="Updates")
    for update in updates(adapter.config.model, adapter.config.tuning):
        count = sum(leaf.size for path, leaf in adapter.leaves.items() if path.startswith(f"{update.module}/lora_"))
        layers = str(update.kernel.shape[0])
        table.add_row(update.module, layers, str(update.rank), f"{update.alpha:g}", f"{update.scale:.4g}", f"{count:,}")
    return table


def _ranks_left(adapter: Adapter) -> Table:
    table = Table("module", "of layers 0, 1, ...", "together", title="Ranks left")
    left, there = 0, 0
    for update in updates(adapter.config.model, adapter.config.tuning):
        diagonal_LQ = adapter.leaves[f"{update.module}/lora_e"]
        ranks_L = np.count_nonzero(diagonal_LQ, axis=1)
        left, there = left + int(ranks_L.sum()), there + diagonal_LQ.size
        table.add_row(update.module, " ".join(map(str, ranks_L)), f"{ranks_L.sum()} of {diagonal_LQ.size}")
    table.add_section()
    table.add_row("together", "", f"{left} of {there}")
    return table


def _gates(adapter: Adapter) -> Table:
    table = Table("gates", "of layers 0, 1, ...", title="Gates, of prefixes the mean size over heads")
    for path, leaf in adapter.leaves.items():
        if path.endswith("/lora_gate"):
            table.add_row(path, " ".join(f"{gate:.3f}" for gate in leaf))
    mean_L = np.abs(adapter.leaves["layers/attention/gate"]).mean(axis=1)
    table.add_row("layers/attention/gate", " ".join(f"{gate:.3f}" for gate in mean_L))
    return table
