"""What experiments share that train recipes and ask the models: commands of `jaxllm`, measured as they run."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import DataConfig
from jaxllm.evaluation.held_out import trained_rows
from jaxllm.evaluation.metrics import TEXT_METRICS, Mean
from jaxllm.evaluation.rows import Row

ROOT = Path(__file__).parent.parent
JAXLLM = Path(sys.executable).with_name("jaxllm")
COMMONEST = "commonest answer"
"""What the line of `commonest` is called."""


def run(*words: str | Path) -> dict[str, float]:
    """Runs `jaxllm` with these words to its end; its seconds and its peak of memory in MiB."""
    command = [str(JAXLLM), *map(str, words)]
    print(*command[1:4], flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        sys.exit(f"this command failed: {' '.join(command)}")
    return {"seconds": time.perf_counter() - began, "peak_mib": used.ru_maxrss / 1024}


def train(folder: Path, recipe: str, *overrides: str | Path) -> dict[str, float | None]:
    """Trains a recipe in that folder; or what is left of the run that is there, whose cost is then not known."""
    if (folder / "config.json").exists():
        run("train", folder)
        return {"seconds": None, "peak_mib": None}
    return {**run("train", recipe, "--output", folder, "--eval.no-tasks", *overrides)}


def ask(model: Path, out: Path, metrics: Sequence[str], *rows: str | Path) -> dict[str, Any]:
    """What `jaxllm eval` finds with these options, which say of which rows: `mean` over tasks, and of each of `tasks`.

    Short answers are written, in bfloat16; each metric is `mean`, `stderr` and `rows`.
    """
    short = ("--max-new-tokens", "24") if "acc" not in metrics else ()
    run("eval", model, *rows, "--metrics", *metrics, *short, "--dtype", "bfloat16", "--out", out)
    return json.loads(out.read_text())


def commonest(data: DataConfig, asked: Sequence[Row], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What it is worth always to give the commonest answer of the training rows of each task; as `mean` of `ask`."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in trained_rows(data):
        answers[row.task][row.references[0]] += 1
    values: dict[str, dict[str, list[float]]] = {metric: defaultdict(list) for metric in metrics}
    for row in asked:
        ((answer, _),) = answers[row.task].most_common(1)
        for metric, of_tasks in values.items():
            of_tasks[row.task].append(TEXT_METRICS[metric](answer, row.references[0]))
    return {name: Mean.over([Mean.of(x) for x in of_tasks.values()])._asdict() for name, of_tasks in values.items()}


class Results:
    """A file `results.json` of what was measured, by names; what is there is not measured again."""

    def __init__(self, folder: Path, **options: Any):
        """`options` are what all results depend on; a folder holds those of one choice."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._options = folder / "results.json", options
        found = json.loads(self._path.read_text()) if self._path.exists() else {"options": options, "results": {}}
        if found["options"] != options:
            sys.exit(f"'{self._path}' is of {found['options']}, not of {options}; another folder would do")
        self.all: dict[str, dict[str, Any]] = found["results"]

    def has(self, name: str, kind: str) -> bool:
        return kind in self.all.get(name, {})

    def add(self, name: str, kind: str, result: Any) -> None:
        """Writes it down."""
        self.all.setdefault(name, {})[kind] = result
        writing = self._path.with_suffix(".writing")
        writing.write_text(json.dumps({"options": self._options, "results": self.all}, indent=1))
        os.replace(writing, self._path)


def shown(shares: Sequence[dict[str, Any]]) -> str:
    """The mean of runs in percent, plus or minus the deviation over runs; of one run, its standard error over rows."""
    means = [100 * share["mean"] for share in shares]
    if len(means) == 1 and shares[0]["stderr"] is None:
        return f"{means[0]:.1f}"
    error = statistics.stdev(means) if len(means) > 1 else 100 * shares[0]["stderr"]
    return f"{statistics.mean(means):.1f} ± {error:.1f}"
