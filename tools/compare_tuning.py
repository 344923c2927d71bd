"""What ways of tuning give: answers that are right, on tasks that were trained and on others, and what they cost.

    tools/fetch_pretrained && python tools/compare_tuning.py runs/comparison
    python tools/compare_tuning.py runs/comparison --methods full lora --seeds 0 1 2 --limit 12

Trains the recipes of `configs/*/smollm2_multitask*.py` with each seed, and has `jaxllm eval` ask each model, and the
base, held-out rows of all tasks whose answers are short, `--limit` of each; of a task that is not trained ten times as
many. An answer is right if it is the expected one but for case, punctuation and articles (SQuAD's exact match); the
mean is over tasks, plus or minus its standard error. What is in `results.json` is not done again, and a run that was
stopped goes on, so the same command goes on too.
"""

import argparse
import gzip
import json
import math
import statistics
from pathlib import Path
from typing import Any

from _experiment import ROOT, Results, ask, shown, train

from configs.sft.smollm2_multitask import BASE, DATA, UNSEEN
from jaxllm.cli.recipe import load_run
from jaxllm.models.adapters import trained_table

RECIPES = {
    "full": "configs/sft/smollm2_multitask.py",
    "lora": "configs/lora/smollm2_multitask.py",
    "adalora": "configs/lora/smollm2_multitask_adalora.py",
    "prompt": "configs/prompt/smollm2_multitask.py",
    "hybrid": "configs/lora/smollm2_multitask_hybrid.py",
}
SHORT = 25
"""Characters of a short answer, on average over a task."""


def short_tasks() -> list[str]:
    """Tasks whose answers are short, but for those that are never trained."""
    path = DATA.sources[0].path
    assert path is not None
    lengths: dict[str, list[int]] = {}
    with gzip.open(ROOT / path, "rt") as lines:
        for row in map(json.loads, lines):
            lengths.setdefault(row["task"], []).append(len(row["completion"]))
    return sorted(task for task in lengths.keys() - set(UNSEEN) if statistics.mean(lengths[task]) <= SHORT)


def trained_parameters(method: str) -> int:
    """How many a recipe trains."""
    table = trained_table(load_run([str(ROOT / RECIPES[method])], "compare_tuning"))
    return sum(math.prod(leaf.shape) for leaf in table.values())


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each model; the base costs nothing."""
    lines = [f"{'':12}{'seen':>14}{'unseen':>14}{'trained':>13}{'minutes':>9}{'MiB':>7}"]
    for name, of_run in results.items():
        line = f"{name:12}{shown(of_run['seen']):>14}{shown(of_run['unseen']):>14}"
        if cost := of_run.get("cost"):
            trained = trained_parameters(name.split()[0])
            line += f"{trained:13,}{cost['seconds'] / 60:9.1f}{cost['peak_mib']:7.0f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=["full", "lora", "prompt", "hybrid"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=6, help="rows of each trained task")
    options = parser.parse_args()
    folder = options.folder.resolve()
    results = Results(folder)
    asked = {"unseen": (UNSEEN, 10 * options.limit), "seen": (short_tasks(), options.limit)}
    models = {"base": (ROOT / BASE, None, 0)}
    models |= {f"{m} {seed}": (folder / f"{m}-{seed}", m, seed) for seed in options.seeds for m in options.methods}
    for name, (own, method, seed) in models.items():
        if method is not None and not results.has(name, "cost"):
            results.add(name, "cost", train(own, RECIPES[method], "--seed", str(seed)))
        for kind, (tasks, limit) in asked.items():
            if not results.has(name, kind):
                out = folder / f"{name.replace(' ', '-')}-{kind}.json"
                results.add(name, kind, ask(own, RECIPES["full"], out, "exact", tasks, limit))
        print(table({n: r for n, r in results.all.items() if "seen" in r and "unseen" in r}), flush=True)


if __name__ == "__main__":
    main()
