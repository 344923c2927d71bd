"""What the number of virtual tokens, and what they start as, are worth: `configs/prompt/labels.py` with each.

    tools/fetch_pretrained && python tools/compare_prompts.py runs/prompts --seeds 0 1 2
    python tools/compare_prompts.py runs/longer --train.steps 300

Published (2104.08691, on T5): label words are no worse than common tokens, and those no worse than uniform numbers;
20 tokens are better than 5, and those than one. Each model is asked for the labels of all held-out rows: the share of
right answers, in percent. Beside it stands the run's last held-out loss, over as many rows as the recipe's
`eval.last_tokens` hold, in nats a token of an answer. Errors are the deviation over seeds, or of one seed the standard
error over rows. Options that are not its own are passed on to `jaxllm train`; the same command goes on where it was
stopped.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

from _experiment import COMMONEST, ROOT, Results, ask, commonest, shown, train

from configs.prompt import labels
from jaxllm.evaluation.held_out import held_out_rows

RECIPE = "configs/prompt/labels.py"
RUNS = {
    "1 token, common": {"length": "1", "start": "vocabulary"},
    "5 tokens, common": {"length": "5", "start": "vocabulary"},
    "20 tokens, common": {"length": "20", "start": "vocabulary"},
    "20 tokens, uniform": {"length": "20", "start": "uniform"},
    "20 tokens, labels": {"length": "20", "start": "labels"},
}


def options_of(settings: dict[str, str]) -> list[str]:
    """These settings of the prompt, as options of `jaxllm train`."""
    own = [word for name, value in settings.items() for word in (f"--tuning.prompt.{name}", value)]
    return own if settings["start"] == "labels" else [*own, "--tuning.prompt.labels"]


def final_loss(folder: Path) -> float:
    """The held-out loss after the last step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line["final_loss"] for line in reversed(lines) if "final_loss" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the runs and their results")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options, overrides = parser.parse_known_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)
    results, data = Results(folder, train=overrides), labels.recipe().data
    if not results.has(COMMONEST, "exact"):
        results.add(COMMONEST, "exact", commonest(data, held_out_rows(data), ["exact"])["exact"])
    for seed in options.seeds:
        for name, settings in RUNS.items():
            own, run = folder / f"{settings['length']}-{settings['start']}-{seed}", f"{name}, seed {seed}"
            if not results.has(run, "loss"):
                train(own, RECIPE, "--seed", str(seed), *options_of(settings), *overrides)
                results.add(run, "loss", final_loss(own))
            if not results.has(run, "exact"):
                found = ask(own, own.with_suffix(".json"), ["exact"], "--held-out", RECIPE)
                results.add(run, "exact", found["mean"]["exact"])
    print(f"{'':28}{'right':>14}{'loss':>14}")
    print(f"{COMMONEST:28}{shown([results.all[COMMONEST]['exact']]):>14}")
    for name in RUNS:
        runs = [results.all[f"{name}, seed {seed}"] for seed in options.seeds]
        losses = [of_run["loss"] for of_run in runs]
        loss = f"{statistics.mean(losses):.2f}" + (f" ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else "")
        print(f"{name:28}{shown([of_run['exact'] for of_run in runs]):>14}{loss:>14}")


if __name__ == "__main__":
    main()
