"""What ways of tuning give: answers that are right, on tasks that were trained and on others, and what they cost.

    tools/fetch_pretrained && python tools/compare_tuning.py runs/comparison
    python tools/compare_tuning.py runs/comparison --methods full lora --seeds 0 1 2 --limit 12
    python tools/compare_tuning.py runs/epoch --train.steps 350 --train.batch-size 16

Trains the recipes of `configs/*/smollm2_multitask*.py` with each seed, and has `jaxllm eval` ask each model, and the
base, held-out rows of all tasks whose answers are short, `--limit` of each; of a task that is not trained ten times as
many. Options that are not its own are passed on to `jaxllm train`. An answer is right if it is the expected one but for
case, punctuation and articles (SQuAD's exact match); F1 is of their words. Printed are the means over tasks in percent,
plus or minus the deviation over seeds, or of one seed the standard error over tasks. What is in `results.json` is not
done again, and a run that was stopped goes on, so the same command goes on too.
"""

import argparse
import math
import os
import statistics
from pathlib import Path
from typing import Any

from _experiment import ROOT, Results, ask, shown, train

from configs.sft.smollm2_multitask import BASE, DATA, UNSEEN
from jaxllm.cli.recipe import load_run
from jaxllm.evaluation.held_out import held_out_rows
from jaxllm.models.adapters import trained_table

RECIPES = {
    "full": "configs/sft/smollm2_multitask.py",
    "lora": "configs/lora/smollm2_multitask.py",
    "adalora": "configs/lora/smollm2_multitask_adalora.py",
    "prompt": "configs/prompt/smollm2_multitask.py",
    "hybrid": "configs/lora/smollm2_multitask_hybrid.py",
}
KINDS, METRICS = ("seen", "unseen"), ("exact", "f1")
SHORT = 25
"""Characters of a short answer, on average over a task."""
FEWEST = 3
"""Held-out rows of a task that is asked."""


def short_tasks() -> list[str]:
    """Tasks with held-out rows to ask, whose answers are short, but for those that are never trained."""
    lengths: dict[str, list[int]] = {}
    for row in held_out_rows(DATA):
        lengths.setdefault(row.task, []).append(len(row.references[0]))
    return sorted(
        task
        for task in lengths.keys() - set(UNSEEN)
        if len(lengths[task]) >= FEWEST and statistics.mean(lengths[task]) <= SHORT
    )


def trained_parameters(method: str) -> int:
    """How many a recipe trains."""
    table = trained_table(load_run([str(ROOT / RECIPES[method])], "compare_tuning"))
    return sum(math.prod(leaf.shape) for leaf in table.values())


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each method; the base costs nothing."""
    heads = "".join(f"{kind + ' ' + name:>14}" for kind in KINDS for name in METRICS)
    lines = [f"{'':10}{'runs':>6}{heads}{'trained':>13}{'minutes':>9}{'MiB':>7}"]
    for method in dict.fromkeys(name.split()[0] for name in results):
        runs = [of_run for name, of_run in results.items() if name.split()[0] == method]
        runs = [of_run for of_run in runs if of_run.keys() >= set(KINDS)]
        if not runs:
            continue
        shares = (shown([r[kind][name] for r in runs]) for kind in KINDS for name in METRICS)
        line = f"{method:10}{len(runs):6}" + "".join(f"{share:>14}" for share in shares)
        if method in RECIPES:
            line += f"{trained_parameters(method):13,}"
            costs = [r["cost"] for r in runs if r["cost"]["seconds"] is not None]
            if costs:
                line += f"{statistics.mean(c['seconds'] for c in costs) / 60:9.1f}"
                line += f"{max(c['peak_mib'] for c in costs):7.0f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=["full", "lora", "prompt", "hybrid"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=6, help="rows of each trained task")
    options, overrides = parser.parse_known_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results = Results(folder, limit=options.limit, train=overrides)
    asked = {"unseen": (UNSEEN, 10 * options.limit), "seen": (short_tasks(), options.limit)}
    models = {"base": (ROOT / BASE, None, 0)}
    models |= {f"{m} {seed}": (folder / f"{m}-{seed}", m, seed) for seed in options.seeds for m in options.methods}
    for name, (own, method, seed) in models.items():
        if method is not None and not results.has(name, "cost"):
            results.add(name, "cost", train(own, RECIPES[method], "--seed", str(seed), *overrides))
        for kind, (tasks, limit) in asked.items():
            if not results.has(name, kind):
                out = folder / f"{name.replace(' ', '-')}-{kind}.json"
                results.add(name, kind, ask(own, RECIPES["full"], out, METRICS, tasks, limit))
        print(table(results.all), flush=True)


if __name__ == "__main__":
    main()
