"""What a model forgets of one kind of task when it is tuned for another, with and without rehearsal, and by LoRA.

    tools/fetch_pretrained && python tools/forgetting.py runs/forgetting

Tunes all parameters to label texts (`configs/sft/forgetting.py`), then goes on from there with titles: alone, with a
fifth of rehearsal, and alone by LoRA. Each model is asked for held-out labels (share of right answers) and titles
(ROUGE-L), in percent; standard errors are over rows, of which several are of one record. The line "commonest answer"
always gives that of the training rows of a task. The same command goes on where it was stopped.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=40, help="held-out rows of each task")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results, data = Results(folder, seed=options.seed, limit=options.limit), forgetting.recipe().data
    for kind, (metric, tasks) in ASKED.items():
        if not results.has(COMMONEST, kind):
            asked = chosen_rows(held_out_rows(data), tasks, options.limit)
            results.add(COMMONEST, kind, commonest(data, asked, [metric])[metric])
    for name, overrides in {"base": None, **RUNS}.items():
        own = ROOT / BASE if overrides is None else folder / name.replace(" ", "_")
        if overrides is not None and not results.has(name, "cost"):
            begin = () if name == "labels" else ("--base", folder / "labels")
            results.add(name, "cost", train(own, RECIPE, "--seed", str(options.seed), *begin, *overrides))
        for kind, (metric, tasks) in ASKED.items():
            if not results.has(name, kind):
                out = folder / f"{name.replace(' ', '_')}-{kind}.json"
                words = ("--held-out", RECIPE, "--limit", str(options.limit), "--tasks", *tasks)
                results.add(name, kind, ask(own, out, [metric], *words)["mean"][metric])
    print(f"{'':28}{'labels':>14}{'titles':>14}")
    for name, of_run in results.all.items():
        print(f"{name:28}{shown([of_run['labels']]):>14}{shown([of_run['titles']]):>14}")


if __name__ == "__main__":
    main()
