"""Pictures of a run: its loss, and what became of its tasks."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMED = 5
"""Tasks whose names are written beside their points."""


def plot_loss(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws bits a byte of training and held-out text over the steps, from lines of `metrics.jsonl`, as a PNG.

    Of objectives that do not predict a text token by token, nats a token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    is_text = any(line.get("bits_per_byte") is not None for line in lines)
    value, unit = ("bits_per_byte", "bits a byte") if is_text else ("loss", "nats a token")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*curve(value), color="#9db4c8", linewidth=1, label="training")
    steps, values = curve(f"held_out_{value}")
    if steps:
        axes.plot(steps, values, color="#c2410c", linewidth=2, marker="o", markersize=3, label="held out")
    steps, values = curve(f"final_{value}")
    if steps:
        axes.plot(steps[-1:], values[-1:], "*", color="#c2410c", markersize=11, label="held out, all of it")
        axes.annotate(f"{values[-1]:.3f}", (steps[-1], values[-1]), (0, -16), textcoords="offset points", ha="center")
    axes.set(xlabel="step", ylabel=unit)
    axes.set_title(title, parse_math=False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    _save(figure, path)


def plot_tasks(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws each task's held-out loss after training against that before it, from lines of `tasks.jsonl`, as a PNG.

    The tasks that rose the most are named, which lie above the diagonal.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    before, after = ([line[name] for line in lines] for name in ("before", "after"))
    figure = Figure(figsize=(6, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = min(before + after), max(before + after)
    axes.plot([low, high], [low, high], color="#9db4c8", linewidth=1, label="no change")
    rose = [line["difference"] > 0 for line in lines]
    for which, color, label in ((True, "#c2410c", "forgotten"), (False, "#2563a8", "learned")):
        points = [(b, a) for b, a, up in zip(before, after, rose, strict=True) if up is which]
        axes.scatter([b for b, _ in points], [a for _, a in points], s=14, color=color, label=label)
    for line in sorted(lines, key=lambda line: -line["difference"])[:NAMED]:
        at = (line["before"], line["after"])
        axes.annotate(line["task"][:40], at, (4, 4), textcoords="offset points", fontsize=6, parse_math=False)
    axes.set(xlabel="held-out nats a token before training", ylabel="after training")
    axes.set_title(title, parse_math=False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    writing = path.with_suffix(".writing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes stand for them
        figure.savefig(writing, format="png")
    os.replace(writing, path)
