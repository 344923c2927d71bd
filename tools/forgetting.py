"""What a model forgets of one kind of task when it is tuned for another, with and without rehearsal, and by LoRA.

    tools/fetch_pretrained && python tools/forgetting.py runs/forgetting --seeds 0 1 2

Tunes all parameters to label texts (`configs/sft/forgetting.py`), then goes on from there with titles: alone, with a
fifth of rehearsal, and alone by LoRA. Each model is asked for held-out labels (share of right answers) and titles
(ROUGE-L), in percent, plus or minus the deviation over seeds, or of one seed the standard error over rows, of which
several are of one record. The line "commonest answer" always gives that of the training rows of a task. The same
command goes on where it was stopped.
"""

import argparse
import os
from pathlib import Path

from _experiment import COMMONEST, ROOT, Results, ask, commonest, shown, train

from configs.sft import forgetting
from configs.sft.smollm2_multitask import BASE
from jaxllm.evaluation.held_out import held_out_rows
from jaxllm.evaluation.rows import chosen_rows

RECIPE = "configs/sft/forgetting.py"
LORA = ("--tuning.method", "lora", "--tuning.lora.rank", "8", "--optimizer.learning-rate", "1e-3")
ALONE = ("--data.sources.0.weight", "0")
RUNS = {
    "labels": ("--data.sources.1.weight", "0"),
    "then titles": ALONE,
    "then titles with rehearsal": (),
    "then titles by LoRA": (*ALONE, *LORA),
}
ASKED = {"labels": ("exact", forgetting.LABELS), "titles": ("rougeL", forgetting.TITLES)}


def ask_both(results: Results, run: str, model: Path, folder: Path, limit: int) -> None:
    """Asks a model for labels and for titles, but for what is known."""
    for kind, (metric, tasks) in ASKED.items():
        if not results.has(run, kind):
            words = ("--held-out", RECIPE, "--limit", str(limit), "--tasks", *tasks)
            found = ask(model, folder / f"{model.name}-{kind}.json", [metric], *words)
            results.add(run, kind, found["mean"][metric])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=40, help="held-out rows of each task")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results, data = Results(folder, limit=options.limit), forgetting.recipe().data
    for kind, (metric, tasks) in ASKED.items():
        if not results.has(COMMONEST, kind):
            asked = chosen_rows(held_out_rows(data), tasks, options.limit)
            results.add(COMMONEST, kind, commonest(data, asked, [metric])[metric])
    ask_both(results, "base", ROOT / BASE, folder, options.limit)
    for seed in options.seeds:
        for name, overrides in RUNS.items():
            run, own = f"{name}, seed {seed}", folder / f"{name.replace(' ', '_')}-{seed}"
            if not results.has(run, "cost"):
                begin = () if name == "labels" else ("--base", folder / f"labels-{seed}")
                results.add(run, "cost", train(own, RECIPE, "--seed", str(seed), *begin, *overrides))
            ask_both(results, run, own, folder, options.limit)
    print(f"{'':28}{'labels':>14}{'titles':>14}")
    for name in (COMMONEST, "base", *RUNS):
        runs = [found for run, found in results.all.items() if run.partition(", seed")[0] == name]
        print(f"{name:28}" + "".join(f"{shown([found[kind] for found in runs]):>14}" for kind in ASKED))


if __name__ == "__main__":
    main()
