"""Kills training runs with SIGKILL at random moments, resumes them, and compares how they end with a run left alone.

    python tools/resume_matrix.py            # 20 runs, a few minutes
    python tools/resume_matrix.py --runs 3 --seed 7

Each run is killed one to three times, most often just after a random step, where a checkpoint is nearly always being
written, and else at any moment while the process starts; then it is resumed to its end. Equal means:
the same bytes in every array of the last checkpoint (parameters, optimizer state, moving average, counters) and
the same metrics but for the speed. Exit status 1 if any run differs.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RECIPE = """
from jaxllm.config import *


def recipe() -> RunConfig:
    return RunConfig(
        name="matrix",
        log_every=1,
        model=TransformerConfig(
            vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, max_positions=64
        ),
        data=DataConfig(sources=(SourceConfig(kind="text", path={texts!r}),), sequence_length=64),
        tokenizer=TokenizerConfig(vocab_size=512),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule=ScheduleConfig(warmup_steps=10)),
        train=TrainConfig(steps={steps}, batch_size=4, ema_decay=0.95),
        eval=EvalConfig(every=15, max_tokens=2000, prompts=()),
        checkpoint=CheckpointConfig(every=3, keep=2),
    )
"""

STEPS = 60
STEP_SECONDS = 0.1
"""A kill comes within this time after its step: about as long as a few steps take."""

MODULES = "abc argparse ast bisect calendar cmd code codecs copy csv dis enum glob heapq inspect io json os random re"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-matrix-") as folder:
        return matrix(Path(folder), options.runs, random.Random(options.seed))


def matrix(root: Path, runs: int, choose: random.Random) -> int:
    """Trains all runs under `root` and prints the table."""
    console = Console()
    recipe = write_recipe(root)
    train(recipe, root / "warm-up")  # fills the caches, so that the kills do not all meet the compiler
    began = time.perf_counter()
    training, _ = train(recipe, root / "whole")
    whole_seconds = time.perf_counter() - began
    console.print(f"uninterrupted: {whole_seconds:.1f} s, of which {training:.1f} s from the first step on")

    table = Table("run", "killed", "result", title="Killed and resumed, against the uninterrupted run")
    different = 0
    for run in range(runs):
        folder, kills = root / f"run-{run}", []
        for step in sorted(choose.sample(range(1, STEPS), choose.randint(1, 3))):
            if choose.random() < 0.8:
                _, killed = train(recipe, folder, kill=(step, choose.uniform(0, STEP_SECONDS)))
            else:
                _, killed = train(recipe, folder, kill=(0, choose.uniform(0, whole_seconds - training)))
            if killed:
                kills.append(found(folder))
        train(recipe, folder)
        difference = compare(folder, root / "whole")
        different += difference is not None
        result = "[green]equal[/green]" if difference is None else f"[red]{difference}[/red]"
        table.add_row(str(run + 1), "\n".join(kills), result)
        console.print(f"run {run + 1}: {len(kills)} kills, {difference or 'equal'}")
    console.print(table)
    console.print(f"{runs - different} of {runs} runs are equal byte for byte")
    return int(different > 0)


def write_recipe(root: Path) -> Path:
    """A recipe on a few modules of this Python."""
    texts = root / "texts"
    texts.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for name in MODULES.split():
        path = library / f"{name}.py"
        (texts / f"{name}.txt").write_text((path if path.exists() else library / name / "__init__.py").read_text())
    recipe = root / "recipe.py"
    recipe.write_text(RECIPE.format(texts=str(texts), steps=STEPS))
    return recipe


def train(recipe: Path, folder: Path, kill: tuple[int, float] | None = None) -> tuple[float, bool]:
    """Trains in a process of its own, which is killed at (a step, or 0 for its start; and so many seconds later).

    Returns the seconds from the first step to the end, and whether a kill ended it.
    """
    environment = {**os.environ, "JAXLLM_CACHE": str(recipe.parent / "cache")}
    program = "import sys; from jaxllm.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", str(recipe), "--output", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        wanted = 1 if kill is None else kill[0]
        if wanted:
            steps = (re.match(r"step (\d+)/", line) for line in process.stdout)
            next((step for step in steps if step and int(step[1]) >= wanted), None)
        first_step = time.perf_counter()
        if kill is not None:
            time.sleep(kill[1])
            process.kill()
        printed, errors = process.communicate()
    if kill is None and process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{printed}{errors}")
    return time.perf_counter() - first_step, process.returncode == -signal.SIGKILL


def found(folder: Path) -> str:
    """What a kill left."""
    if not folder.exists():
        return "before the run folder was made"
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    step = metrics.read_text().count('"grad_norm"') if metrics.exists() else 0
    names = sorted(path.name for path in checkpoints.iterdir()) if checkpoints.exists() else []
    whole = max((int(name) for name in names if name.isdecimal()), default=None)
    half = [name for name in names if not name.isdecimal()]
    return f"at step {step}, checkpoint {whole}" + (f", half-way through {', '.join(half)}" if half else "")


def compare(folder: Path, whole: Path) -> str | None:
    """The first difference between how two runs ended, or none."""
    here, there = (last_arrays(f) for f in (folder, whole))
    if here.keys() != there.keys():
        return f"arrays {sorted(here.keys() ^ there.keys())}"
    for path, array in here.items():
        if (array.dtype, array.tobytes()) != (there[path].dtype, there[path].tobytes()):
            return f"array {path}"
    if lines(folder) != lines(whole):
        return "metrics"
    return None


def last_arrays(folder: Path) -> dict[str, Any]:
    """Every array of the last checkpoint, by its path."""
    import numpy as np

    from jaxllm.common.trees import flatten
    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.train.checkpoint import Checkpoints
    from jaxllm.train.run_folder import saved_config
    from jaxllm.train.state import abstract_state

    config = saved_config(folder)
    with Checkpoints(folder) as checkpoints:
        state, _ = checkpoints.restore(abstract_state(config, make_mesh(config.mesh)), checkpoints.steps()[-1])
    return {path: np.asarray(array) for path, array in flatten(state).items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics without the speed."""
    read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in read]


if __name__ == "__main__":
    raise SystemExit(main())
