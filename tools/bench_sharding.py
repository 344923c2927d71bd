"""What cutting a training step costs by itself: tokens a second on 8 host devices against 1, of the same global batch.

    python tools/bench_sharding.py --json results.json

The model and the batch are those of `tools/bench_train.py`, in float32. The devices of a side share the cores of this
machine, and so do the same products: what a side loses against one device is copies between devices, smaller products,
and what is done once on each device. A turn is a step; sides take turns, and medians are told.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from _bench import Worker, answers
from bench_train import BATCH, LENGTH, WARMUP, ours, summary, timed

SIDES: dict[str, dict[str, int]] = {
    "1 device": {"data": 1},
    "fsdp 8, ZeRO 3": {"data": 1, "fsdp": 8},
    "fsdp 8, ZeRO 2": {"data": 1, "fsdp": 8, "zero_stage": 2},
    "fsdp 8, ZeRO 1": {"data": 1, "fsdp": 8, "zero_stage": 1},
    "data 2 x fsdp 4": {"data": 2, "fsdp": 4},
    "data 8": {"data": 8},
    "fsdp 4 x tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "fsdp 4 x sequence 2": {"data": 1, "fsdp": 4, "sequence": 2},
}
"""Meshes; the first is what the others are held against."""


def devices(side: str) -> int:
    """Of the mesh of a side."""
    count = 1
    for axis, size in SIDES[side].items():
        count *= 1 if axis == "zero_stage" else size
    return count


def serve(side: str) -> None:
    """A worker: one line in is one step, one JSON line out is what came of it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices(side)}"
    way_back = answers()
    step, about = ours("float32", **SIDES[side])
    for _ in range(WARMUP):
        step()
    print(json.dumps(about), file=way_back)
    for _ in sys.stdin:
        print(json.dumps(timed(step)), file=way_back)


def measure(side: str, alone: Worker, rounds: int) -> dict[str, Any]:
    """A side beside one device, in turns."""
    cut = Worker(side, sys.executable, __file__, "--serve", side)
    pair, turns = [alone, cut], {alone.label: list[Any](), side: list[Any]()}
    try:
        for i in range(rounds):
            for worker in pair[i % 2 :] + pair[: i % 2]:
                turns[worker.label].append(worker.ask("step"))
    finally:
        cut.close()
    return {"label": side, **cut.about, **summary(turns[side]), "alone": summary(turns[alone.label])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side that are timed")
    parser.add_argument("--json", type=Path, help="a file for all results")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    else:
        compare(options.rounds, options.json)


def compare(rounds: int, path: Path | None) -> None:
    """Prints a row for each side as soon as it is measured."""
    first, *others = SIDES
    alone = Worker(first, sys.executable, __file__, "--serve", first)
    print(f"{BATCH} rows of {LENGTH} tokens, {alone.about['version']}\n")
    print("| mesh | tokens/s | one device beside it | ratio | MiB, all devices |\n| --- | --- | --- | --- | --- |")
    results = []
    try:
        for side in others:
            results.append(measure(side, alone, rounds))
            cut, one = results[-1], results[-1]["alone"]
            speeds = cut["tokens_per_second"], one["tokens_per_second"]
            print(
                f"| {side} | {speeds[0]:.0f} | {speeds[1]:.0f} | {speeds[0] / speeds[1]:.2f} | {cut['peak_mib']:,.0f} |"
            )
            sys.stdout.flush()
    finally:
        alone.close()
    if path:
        path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
