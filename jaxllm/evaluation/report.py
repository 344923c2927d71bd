"""Results as tables: the tasks and their mean, and what has changed from other results."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from jaxllm.common.console import wide_console
from jaxllm.evaluation.metrics import Mean
from jaxllm.evaluation.results import Tasks, over_tasks

MEAN = "mean over tasks"

SHOWN = 40
"""Lines of changes, at most; the files have all."""

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity")


def show_tasks(
    tasks: Tasks, console: Console | None = None, counted: str = "rows", groups: Tasks | None = None
) -> None:
    """One line a task, and then a group of them: how much was `counted` (rows, or tokens that were predicted), and each
    metric with its standard error. Groups have no part in the mean over tasks."""
    metrics = list(over_tasks({**tasks, **(groups or {})}))
    table = _table("task", counted, *metrics)
    for part in (tasks, groups or {}):
        for task, own in part.items():
            rows = max((mean.rows for mean in own.values()), default=0)
            table.add_row(task, f"{rows:,}", *(_text(own.get(metric)) for metric in metrics))
        table.add_section()
    if len(tasks) > 1:
        together = over_tasks(tasks)
        table.add_row(MEAN, f"{len(tasks)} tasks", *(_text(together.get(metric)) for metric in metrics))
    (console or wide_console()).print(table)


def show_comparison(tasks: Tasks, others: Mapping[str, Tasks], console: Console | None = None) -> None:
    """What both have: the others' means, these, and the difference to the first of the others with its standard error
    (of runs apart: it is smaller for the same rows). Tasks that have become worse most come first."""
    out = console or wide_console()
    first = next(iter(others.values()))
    changes = {
        (task, metric): mean.minus(first[task][metric])
        for task, own in tasks.items()
        for metric, mean in own.items()
        if metric in first.get(task, {})
    }
    if not changes:
        out.print("nothing is in both to be compared")
        return
    ordered = sorted(changes, key=lambda at: _gain(at[1], changes[at]))
    table = _table("task", "metric", *others, "this", "difference")
    for task, metric in ordered[:SHOWN]:
        before = [_text(other.get(task, {}).get(metric)) for other in others.values()]
        table.add_row(task, metric, *before, _text(tasks[task][metric]), _text(changes[task, metric], "+"))
    table.add_section()
    shared: Tasks = {task: {m: mean for m, mean in own.items() if (task, m) in changes} for task, own in tasks.items()}
    for metric, mean in over_tasks(shared).items() if len(shared) > 1 else ():
        named = [task for task, own in shared.items() if metric in own]
        means = [over_tasks({task: other.get(task, {}) for task in named}).get(metric) for other in others.values()]
        assert means[0] is not None  # `changes` are to it
        table.add_row(MEAN, metric, *(_text(of) for of in means), _text(mean), _text(mean.minus(means[0]), "+"))
    out.print(table)
    if len(ordered) > SHOWN:
        out.print(f"{len(ordered) - SHOWN} smaller changes are not shown")
    alone = tasks.keys() ^ first.keys()
    if alone:
        out.print(f"not in both: {', '.join(sorted(alone))}")


def _gain(metric: str, change: Mean) -> float:
    return -change.mean if metric in LOWER_IS_BETTER else change.mean


def _text(mean: Mean | None, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{mean.mean:{sign}.4f}" + ("" if mean.stderr is None else f" ±{mean.stderr:.4f}")


def _table(*columns: str) -> Table:
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "metric" else "right", overflow="fold")
    return table
