"""What a run has done to each task: the held-out loss before training and after it, and what was forgotten.

A line of `tasks.jsonl` is an object with `task`, `tokens` (held-out ones that were measured), `before`, `after` (nats a
token) and `difference`; those that rose the most come first.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from jaxllm.common.console import plain_console
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig
from jaxllm.train.evaluate import Evaluator, HeldOut
from jaxllm.train.plot import plot_tasks
from jaxllm.train.report import Report
from jaxllm.train.run_folder import writing_in

SHOWN = 20
"""Tasks that are printed."""

Line = Mapping[str, Any]


class Forgetting:
    """Measures every task of a run that has several."""

    def __init__(self, config: RunConfig, folder: Path, names: Sequence[str], evaluator: Evaluator, report: Report):
        """
        Args:
            config: the run.
            folder: of the run.
            names: of its tasks, in the order of the loader.
            evaluator: measures them.
            report: is told of what was forgotten.
        """
        self._config, self._folder, self._names = config, folder, names
        self._evaluator, self._report = evaluator, report
        self._is_wanted = config.eval.tasks and len(names) > 1

    def measure(self, params: Tree, when: Literal["before", "after"], writes: bool) -> None:
        """Measures `params` before the first step or after the last; the one process that `writes` writes it down.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._is_wanted:
            self._report.say(f"measuring the held-out loss of each of {len(self._names)} tasks, {when} training")
        results = self._evaluator.tasks(params) if self._is_wanted else None
        if results is None or not writes:
            return
        if when == "before" and (left := [name for name, x in zip(self._names, results, strict=True) if x is None]):
            self._report.say(f"tasks that hold nothing out are not measured: {', '.join(left)}")
        with writing_in(self._folder):
            old = {line["task"]: line for line in read_tasks(self._folder)} if when == "after" else {}
            lines = [
                _line(name, result, old.get(name, {}), when)
                for name, result in zip(self._names, results, strict=True)
                if result is not None
            ]
            lines.sort(key=lambda line: -(line.get("difference") or 0.0))
            _write(self._folder, lines)
            known = [line for line in lines if line.get("difference") is not None]
            if known:
                plot_tasks(known, self._folder / "tasks.png", self._config.name)
        if known:
            self._report.say(tasks_table(known))
            self._report.say(f"wrote '{self._folder / 'tasks.jsonl'}' and tasks.png, the loss of each task")


def _line(name: str, result: HeldOut, old: Line, when: str) -> dict[str, Any]:
    line: dict[str, Any] = {"task": name, "tokens": result.tokens, "before": old.get("before"), when: result.loss}
    if when == "after" and line["before"] is not None:
        line["difference"] = result.loss - line["before"]
    return line


def read_tasks(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `tasks.jsonl`; none, if it has no such file."""
    path = folder / "tasks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(folder: Path, lines: Sequence[Line]) -> None:
    writing = folder / "tasks.writing"
    writing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(writing, folder / "tasks.jsonl")


def tasks_table(lines: Sequence[Line]) -> str:
    """The first lines of a finished `tasks.jsonl` as a table, and how many tasks rose and fell."""
    rose = sum(line["difference"] > 0 for line in lines)
    table = Table(title=f"Held-out loss by task: {rose} of {len(lines)} tasks rose, {len(lines) - rose} fell")
    table.add_column("task", overflow="fold")
    for column in ("tokens", "before", "after", "difference"):
        table.add_column(column, justify="right")
    for line in lines[:SHOWN]:
        losses = (f"{line['before']:.4f}", f"{line['after']:.4f}", f"{line['difference']:+.4f}")
        table.add_row(line["task"], f"{line['tokens']:,}", *losses)
    if len(lines) > SHOWN:
        table.caption = f"and {len(lines) - SHOWN} more, in tasks.jsonl"
    text = io.StringIO()
    plain_console(file=text, width=100).print(table)
    return text.getvalue().rstrip()
