"""What ways of tuning give: answers that are right, on tasks that were trained and on others, and what they cost.

    tools/fetch_pretrained && python tools/compare_tuning.py runs/comparison
    python tools/compare_tuning.py runs/comparison --seeds 0 1 2
    python tools/compare_tuning.py runs/epoch --train.steps 350 --train.batch-size 16

Trains the recipes of `configs/*/smollm2_multitask*.py` with each seed, and asks each model, and the base, what is held
out. Of each trained task whose answers are short the model writes answers to `--limit` rows: `exact` are right but for
case, punctuation and articles (SQuAD's exact match), F1 is of their words. Of each task that is not trained it chooses
among the task's answers by likelihood, for twice as many rows with each right answer: `recall` is the share that is
right of each answer, and their mean; one answer to all has 1 / answers. The line "commonest answer" always gives that
of the training rows of a task, or any one of those that are not trained. MiB are the most that a training takes of the
host's memory.

Options that are not its own are passed on to `jaxllm train`. Printed are the means over tasks in percent, plus or minus
the deviation over seeds, or of one seed the standard error over rows. What is in `results.json` is not done again, and
a run that was stopped goes on, so the same command goes on too.
"""

import argparse
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _experiment import COMMONEST, ROOT, Results, ask, commonest, shown, train

from configs.sft.smollm2_multitask import BASE, DATA, UNSEEN
from jaxllm.cli.recipe import load_run
from jaxllm.evaluation.held_out import held_out_rows
from jaxllm.evaluation.metrics import Mean
from jaxllm.evaluation.rows import Row, chosen_rows
from jaxllm.models.adapters import trained_table

RECIPES = {
    "full": "configs/sft/smollm2_multitask.py",
    "lora": "configs/lora/smollm2_multitask.py",
    "adalora": "configs/lora/smollm2_multitask_adalora.py",
    "prompt": "configs/prompt/smollm2_multitask.py",
    "hybrid": "configs/lora/smollm2_multitask_hybrid.py",
}
METRICS = {"seen": ("exact", "f1"), "unseen": ("recall",)}
SHORT = 25
"""Characters of a short answer, on average over a task."""
FEWEST = 3
"""Held-out rows of a task that is asked."""


def short_tasks(rows: list[Row]) -> list[str]:
    """Tasks with held-out rows to ask, whose answers are short, but for those that are never trained."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row.task, []).append(len(row.references[0]))
    return sorted(
        task
        for task in lengths.keys() - set(UNSEEN)
        if len(lengths[task]) >= FEWEST and statistics.mean(lengths[task]) <= SHORT
    )


def write_choices(path: Path, rows: list[Row], limit: int) -> None:
    """Rows of each task that is not trained, `limit` with each right answer, which `task` tells: `name: answer`."""
    lines = []
    for task in UNSEEN:
        own = [row for row in rows if row.task == task]
        choices = sorted({row.references[0] for row in own})
        for answer in choices:
            right = [row for row in own if row.references[0] == answer][:limit]
            asked = {"task": f"{task}: {answer}", "choices": choices, "answer": answer}
            lines += [json.dumps({**asked, "prompt": row.prompt}) + "\n" for row in right]
    path.write_text("".join(lines))


def recall(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean over tasks of the mean over answers, of results by `name: answer`."""
    of_tasks: dict[str, list[Mean]] = defaultdict(list)
    for task, found in metrics.items():
        of_tasks[task.partition(":")[0]].append(Mean(**found["acc"]))
    return {"recall": Mean.over([Mean.over(answers) for answers in of_tasks.values()])._asdict()}


def chance(rows: list[Row]) -> dict[str, Any]:
    """What any one answer to all is worth on the tasks that are not trained."""
    answers = [len({row.references[0] for row in rows if row.task == task}) for task in UNSEEN]
    return {"recall": Mean(statistics.mean(1 / n for n in answers), 0.0, len(answers))._asdict()}


def trained_parameters(method: str, overrides: Sequence[str]) -> int:
    """How many a recipe trains, with these options."""
    table = trained_table(load_run([str(ROOT / RECIPES[method]), *overrides], "compare_tuning"))
    return sum(math.prod(leaf.shape) for leaf in table.values())


def table(results: dict[str, dict[str, Any]], overrides: Sequence[str]) -> str:
    """A line for each method; the base costs nothing."""
    shown_metrics = [(kind, name) for kind, names in METRICS.items() for name in names]
    heads = "".join(f"{kind + ' ' + name:>15}" for kind, name in shown_metrics)
    lines = [f"{'':18}{'runs':>6}{heads}{'trained':>13}{'minutes':>9}{'MiB':>7}"]
    for method in dict.fromkeys(name.rstrip("0123456789 ") for name in results):
        runs = [of_run for name, of_run in results.items() if name.rstrip("0123456789 ") == method]
        runs = [of_run for of_run in runs if of_run.keys() >= METRICS.keys()]
        if not runs:
            continue
        shares = (shown([r[kind][name] for r in runs]) for kind, name in shown_metrics)
        line = f"{method:18}{len(runs):6}" + "".join(f"{share:>15}" for share in shares)
        if method in RECIPES:
            line += f"{trained_parameters(method, overrides):13,}"
            costs = [r["cost"] for r in runs if r["cost"]["seconds"] is not None]
            if costs:
                line += f"{statistics.mean(c['seconds'] for c in costs) / 60:9.1f}"
                line += f"{max(c['peak_mib'] for c in costs):7.0f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=20, help="rows of each trained task")
    options, overrides = parser.parse_known_args()
    if of_data := next((word for word in overrides if word.startswith("--data.")), None):
        parser.error(f"{of_data}: all models are asked what the recipe of all parameters holds out; change that")
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results = Results(folder, limit=options.limit, train=overrides)
    rows = held_out_rows(DATA)
    choices = folder / "unseen.jsonl"
    write_choices(choices, rows, 2 * options.limit)
    if not results.has(COMMONEST, "seen"):
        short = chosen_rows(rows, short_tasks(rows), options.limit)
        results.add(COMMONEST, "seen", commonest(DATA, short, METRICS["seen"]))
    results.add(COMMONEST, "unseen", chance(rows))
    models = {"base": (ROOT / BASE, None, 0)}
    models |= {f"{m} {seed}": (folder / f"{m}-{seed}", m, seed) for seed in options.seeds for m in options.methods}
    for name, (own, method, seed) in models.items():
        if method is not None and not results.has(name, "cost"):
            results.add(name, "cost", train(own, RECIPES[method], "--seed", str(seed), *overrides))
        out = folder / f"{name.replace(' ', '-')}"
        if not results.has(name, "seen"):
            asked = ("--held-out", RECIPES["full"], "--limit", str(options.limit), "--tasks", *short_tasks(rows))
            found = ask(own, out.with_name(f"{out.name}-seen.json"), METRICS["seen"], *asked)
            results.add(name, "seen", found["mean"])
        if not results.has(name, "unseen"):
            found = ask(own, out.with_name(f"{out.name}-unseen.json"), ["acc"], choices)
            results.add(name, "unseen", recall(found["tasks"]))
        print(table(results.all, overrides), flush=True)


if __name__ == "__main__":
    main()
