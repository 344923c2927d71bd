"""What a model forgets of one kind of task when it is tuned for another, with and without rehearsal, and by LoRA.

    tools/fetch_pretrained && python tools/forgetting.py runs/forgetting

Tunes all parameters for topics (`configs/sft/forgetting.py`), then goes on from there with titles: alone, with a fifth
of rehearsal, and alone by LoRA. Each model is asked for held-out topics (share of right answers) and titles (ROUGE-L),
in percent. The same command goes on where it was stopped.
"""

import argparse
import os
from pathlib import Path

from _experiment import ROOT, Results, ask, shown, train

from configs.sft.forgetting import TITLES, TOPICS
from configs.sft.smollm2_multitask import BASE

RECIPE = "configs/sft/forgetting.py"
LORA = ("--tuning.method", "lora", "--tuning.lora.rank", "8", "--optimizer.learning-rate", "1e-3")
ALONE = ("--data.sources.0.weight", "0")
RUNS = {
    "topics": ("--data.sources.1.weight", "0"),
    "then titles": ALONE,
    "then titles with rehearsal": (),
    "then titles by LoRA": (*ALONE, *LORA),
}
ASKED = {"topics": ("exact", TOPICS), "titles": ("rougeL", TITLES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=40, help="held-out rows of each task")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results = Results(folder, seed=options.seed, limit=options.limit)
    for name, overrides in {"base": None, **RUNS}.items():
        own = ROOT / BASE if overrides is None else folder / name.replace(" ", "_")
        if overrides is not None and not results.has(name, "cost"):
            begin = () if name == "topics" else ("--base", folder / "topics")
            results.add(name, "cost", train(own, RECIPE, "--seed", str(options.seed), *begin, *overrides))
        for kind, (metric, tasks) in ASKED.items():
            if not results.has(name, kind):
                out = folder / f"{name.replace(' ', '_')}-{kind}.json"
                asked = ("--held-out", RECIPE, "--limit", str(options.limit), "--tasks", *tasks)
                results.add(name, kind, ask(own, out, [metric], *asked)["mean"][metric])
    print(f"{'':28}{'topics':>14}{'titles':>14}")
    for name, of_run in results.all.items():
        print(f"{name:28}{shown([of_run['topics']]):>14}{shown([of_run['titles']]):>14}")


if __name__ == "__main__":
    main()
