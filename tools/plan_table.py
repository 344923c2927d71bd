"""Plans of recipes on machines that are not here, as a table: `tools/plan_table.py SET [--out FILE] [--python PYTHON]`.

    scaling     Llama 2 7B on 16, 64, 256 and 1,024 chips, v5e and v5p, and 70B on 1,024 v5p
    depth       Llama 2 7B with 8 and with 64 layers
    peers       the steps of which MaxText's compile-only figures are known
    backtest    the steps of which a measured speed is published, against the prediction

Each plan is a process of its own and takes minutes. Finished rows are kept in a file of JSON lines (`plan_table.jsonl`,
which --out moves): the command can be stopped, and goes on where it was. --python names one that has the extra [plan].
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent


class Row(NamedTuple):
    """One plan."""

    recipe: str
    topology: str
    options: tuple[str, ...] = ()
    published: float | None = None
    """Measured tokens a second a chip."""
    peer: str = ""
    """MaxText's compiled program: GB of arguments and of temporaries, GB gathered, GB reduced, seconds to compile."""


def rows_of(count: int) -> tuple[str, ...]:
    """The options for one step of so many rows."""
    return ("--train.batch-size", str(count), "--train.accumulate", "1")


SCALE = "configs/scale/"
SETS = {
    "scaling": [
        Row("configs/pretrain/llama2_7b.py", "v5e:4x4", rows_of(16)),
        Row("configs/pretrain/llama2_7b.py", "v5e:8x8", rows_of(64)),
        Row("configs/pretrain/llama2_7b.py", "v5e:16x16", rows_of(256)),
        Row("configs/pretrain/llama2_7b.py", "4xv5e:16x16", (*rows_of(1024), "--mesh.data", "4")),
        Row("configs/pretrain/llama2_7b.py", "v5p:2x2x4", rows_of(32)),
        Row("configs/pretrain/llama2_7b.py", "v5p:4x4x4", rows_of(128)),
        Row("configs/pretrain/llama2_7b.py", "v5p:4x8x8", rows_of(512)),
        Row("configs/pretrain/llama2_7b.py", "v5p:8x8x16", rows_of(2048)),
        Row(f"{SCALE}llama2_70b.py", "v5p:8x8x16", rows_of(2048)),
    ],
    "depth": [
        Row("configs/pretrain/llama2_7b.py", "v5e:16x16", (*rows_of(256), "--model.layers", "8")),
        Row("configs/pretrain/llama2_7b.py", "v5e:16x16", (*rows_of(256), "--model.layers", "64")),
    ],
    "peers": [
        Row(recipe, topology, (*rows_of(rows), *travel), peer=peer)
        for recipe, topology, rows, peer in (
            ("configs/pretrain/llama2_7b.py", "v5e:16x16", 256, "0.316, 2.68, 26.2, 13.2, 153 s"),
            ("configs/pretrain/llama2_7b.py", "v5p:4x4x4", 128, "1.264, 4.75, 26.2, 13.2, 150 s"),
            ("configs/pretrain/llama_1b.py", "v5e:4x4", 64, "0.928, 10.48, 1.9 + 5.3 permuted, 0, 195 s"),
        )
        for travel in ((), ("--train.reduce-dtype", "bfloat16"))
    ],
    "backtest": [
        Row(f"{SCALE}decoder_16b.py", "v5e:16x16", published=120e12 / 100.65e9),
        Row("configs/pretrain/llama3_8b.py", "v6e:16x16", rows_of(1024), published=7207),
        Row(f"{SCALE}llama3_70b.py", "v6e:16x16", published=960),
        Row(f"{SCALE}llama2_70b.py", "v5p:8x8x8", published=692),
    ],
}
"""16B: 120 TFLOP/s a chip at 100.65 GFLOPs a token, attention counted whole as MaxText did then."""


def main() -> None:
    """Makes the rows of a set that are not there yet, then prints them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("plan_table.jsonl"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--again", action="store_true", help="make every row of the set anew")
    arguments = parser.parse_args()
    done = {} if arguments.again else finished(arguments.out)
    for row in SETS[arguments.set]:
        if key(row) not in done:
            print(f"planning {row.recipe} on {row.topology}", file=sys.stderr, flush=True)
            done[key(row)] = plan(row, arguments.python)
            with arguments.out.open("a") as file:
                file.write(json.dumps({"key": key(row), "plan": done[key(row)]}) + "\n")
    for line in table(SETS[arguments.set], done):
        print(line)


def key(row: Row) -> str:
    """What tells one plan from another."""
    return " ".join((row.recipe, row.topology, *row.options))


def finished(path: Path) -> dict[str, Any]:
    """The plans in the file, the last of each; left out are those that failed, and a line that was cut short."""
    done = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            made = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[made["key"]] = made["plan"]
    return {key: plan for key, plan in done.items() if "error" not in plan}


def plan(row: Row, python: str) -> Any:
    """What `jaxllm plan --json` says; or what it says went wrong."""
    call = "import sys; from jaxllm.cli.main import main; sys.exit(main())"
    words = ["plan", row.recipe, "--topology", row.topology, *row.options, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([python, "-c", call, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    try:
        return json.loads(ran.stdout)
    except json.JSONDecodeError:
        return {"error": (ran.stderr.strip().splitlines() or ["no output"])[-1]}


HEAD = "| step | GiB a device: state, most | executed / model FLOPs | GB gathered, reduced | compile s | predicted |"


def table(rows: list[Row], done: dict[str, Any]) -> list[str]:
    """The rows in Markdown; published speeds and MaxText's figures where they are known."""
    last = " published | error |" if any(row.published for row in rows) else ""
    last = " MaxText: GB arguments, temporaries, gathered, reduced |" if any(row.peer for row in rows) else last
    head = HEAD + last
    return [head, "| " + "--- | " * (head.count("|") - 1), *(line(row, done[key(row)], last) for row in rows)]


def line(row: Row, made: Any, last: str) -> str:
    """One row in Markdown."""
    name = " ".join([f"{Path(row.recipe).stem}, {row.topology}", *row.options[len(rows_of(1)) :]])
    extra = f" {row.peer} |" if row.peer else f" {row.published:,.0f} | |" if row.published else ""
    if "error" in made:
        return f"| {name} | {made['error']} | | | | |{extra}"
    memory, run = made["memory"], made["run"]
    name += f", {run['batch_size'] // run['chips']} x {run['sequence_length']} a chip"
    if made["fits"] is False and "refused" in made:
        return f"| {name} | does not fit: {made['refused']} | | | | |{extra}"
    state = memory["parameters"] + memory["optimizer"] + memory["ema"]
    kinds = {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}
    for met in made["collectives"]:
        kinds[met["kind"]] = kinds.get(met["kind"], 0) + met["bytes"]
    cells = [
        name,
        f"{state / 2**30:.2f}, {memory['peak'] / 2**30:.2f}{'' if made['fits'] else ': does not fit'}",
        f"{made['flops']['executed_over_model']:.2f}",
        f"{kinds['all-gather'] / 1e9:.1f}, {kinds['reduce-scatter'] / 1e9:.1f} scattered + "
        f"{kinds['all-reduce'] / 1e9:.1f} all-reduced",
        f"{made['seconds']['compiling']:.0f}",
    ]
    predicted = made["prediction"]
    low, high = predicted["tokens_per_second_chip"]
    worst, best = predicted["mfu"]
    cells.append(f"{low:,.0f} to {high:,.0f} tokens/s a chip, MFU {worst:.0%} to {best:.0%}, {predicted['bound']}")
    if row.published:
        extra = f" {row.published:,.0f} | {low / row.published - 1:+.0%} to {high / row.published - 1:+.0%} |"
    return "| " + " | ".join(cells) + " |" + extra


if __name__ == "__main__":
    main()
