"""Tokens a second and peak memory of the whole training step, ours against PyTorch's, in one run.

    pip install -e .[bench] && python tools/bench_train.py --json results.json
    python tools/bench_train.py --ours-python jax-0.10=.venv/bin/python --ours-python jax-0.12=.venv-3.13/bin/python

One step is forward, backward, clipping by the global norm and AdamW, on a Llama of 56M parameters and 8 rows of
512 tokens: transformers' `LlamaForCausalLM`, eager and compiled, against what `jaxllm train` runs; a turn is a
step. bfloat16 is autocast in PyTorch and `train.compute_dtype` here. Peak memory is the process's own high-water
mark (VmHWM), compilation included, or on a GPU, which all sides use where there is one, that of its arrays.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from _bench import (
    VOCABULARY,
    Worker,
    alternated,
    answers,
    machine,
    our_shape,
    peak_mib,
    their_shape,
    torch_device,
)

BATCH, LENGTH = 8, 512
LEARNING_RATE, DECAY, CLIP = 3e-4, 0.1, 1.0
WARMUP = 2
"""Steps before the clock counts; the first one compiles."""

Dtype = Literal["float32", "bfloat16"]
Step = Callable[[], float]
"""Runs one step to its end and returns the loss."""


def ours(dtype: Dtype, **mesh_fields: int) -> tuple[Step, dict[str, Any]]:
    """The step of `jaxllm train` on a mesh, compiled as its loop compiles it."""
    import jax
    import numpy as np

    from jaxllm.config import DataConfig, MeshConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
    from jaxllm.models.table import parameter_table
    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.placement import place
    from jaxllm.train.state import abstract_state, initial_state
    from jaxllm.train.step import make_step

    config = RunConfig(
        model=our_shape(LENGTH),
        data=DataConfig(sequence_length=LENGTH),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            weight_decay=DECAY,
            clip_norm=CLIP,
            schedule=ScheduleConfig(kind="constant", warmup_steps=0),
        ),
        train=TrainConfig(batch_size=BATCH, compute_dtype=dtype),
        mesh=MeshConfig(**mesh_fields),  # type: ignore[arg-type]
    )
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, LENGTH), dtype=np.int32)
    mesh = make_mesh(config.mesh)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": np.ones(tokens.shape, np.float32),
        "segments": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape),
    }
    batch = place(batch, mesh)
    program = make_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()
    state = initial_state(config, mesh)

    def step() -> float:
        nonlocal state
        state, metrics = program(state, batch)
        return jax.block_until_ready((state, metrics))[1]["loss"].item()

    parameters = sum(leaf.size for leaf in parameter_table(config.model).values())
    return step, {"version": f"jax {jax.__version__}", "parameters": parameters}


def peer(dtype: Dtype, compiled: bool) -> tuple[Step, dict[str, Any]]:
    """transformers' Llama with PyTorch's fused AdamW."""
    import numpy as np
    import torch
    import transformers

    torch.manual_seed(0)
    device = torch_device()
    model = transformers.LlamaForCausalLM(their_shape(LENGTH)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY, fused=True)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, LENGTH))).to(device)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    version = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return step, {"version": version, "parameters": sum(p.numel() for p in model.parameters())}


SIDES: dict[str, Callable[[Dtype], tuple[Step, dict[str, Any]]]] = {
    "ours": ours,
    "eager": lambda dtype: peer(dtype, compiled=False),
    "compiled": lambda dtype: peer(dtype, compiled=True),
}


def serve(side: str, dtype: Dtype) -> None:
    """A worker: one line in is one step, one JSON line out is what came of it."""
    way_back = answers()
    begin = time.perf_counter()
    step, about = SIDES[side](dtype)
    for _ in range(WARMUP):
        step()
    about["start_seconds"] = time.perf_counter() - begin
    print(json.dumps(about), file=way_back)
    for _ in sys.stdin:
        print(json.dumps(timed(step)), file=way_back)


def timed(step: Step) -> dict[str, float]:
    """One turn."""
    begin = time.perf_counter()
    loss = step()
    return {"seconds": time.perf_counter() - begin, "loss": loss, "peak_mib": peak_mib()}


def measure(dtype: Dtype, sides: list[tuple[str, str, str]], rounds: int) -> list[dict[str, Any]]:
    """Results of all sides (label, side, interpreter) in one type."""
    workers: list[Worker] = []
    try:
        for label, side, python in sides:
            workers.append(Worker(label, python, __file__, "--serve", side, "--dtype", dtype))
            print(f"{dtype}: {label} is ready after {workers[-1].about['start_seconds']:.0f} s", flush=True)
        if len({worker.about["parameters"] for worker in workers}) > 1:
            sys.exit(f"the models differ: {[(w.label, w.about['parameters']) for w in workers]}")
        turns = alternated(workers, rounds)
    finally:
        for worker in workers:
            worker.close()
    return [{"label": w.label, "dtype": dtype, **w.about, **summary(turns[w.label])} for w in workers]


def summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    """One side's turns; the loss shows that it trained, and that it was the same task."""
    seconds = [turn["seconds"] for turn in turns]
    return {
        "tokens_per_second": BATCH * LENGTH / statistics.median(seconds),
        "step_seconds": seconds,
        "peak_mib": turns[-1]["peak_mib"],
        "losses": [turn["loss"] for turn in turns],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Medians, and both ratios to the best PyTorch side (above 1 is faster, below 1 is less memory)."""
    peers = [x for x in results if "torch" in x["version"]]
    lines = [f"{'':24}{'tokens/s':>10}{'fastest':>10}{'slowest':>10}{'MiB':>8}{'speed':>8}{'memory':>8}"]
    for x in results:
        fast, slow = (BATCH * LENGTH / edge(x["step_seconds"]) for edge in (min, max))
        line = f"{x['label']:24}{x['tokens_per_second']:10.0f}{fast:10.0f}{slow:10.0f}{x['peak_mib']:8.0f}"
        if peers:
            line += f"{x['tokens_per_second'] / max(p['tokens_per_second'] for p in peers):8.2f}"
            line += f"{x['peak_mib'] / min(p['peak_mib'] for p in peers):8.2f}"
        lines.append(f"{line}  {x['version']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--ours-python", action="append", metavar="[LABEL=]PYTHON", help="repeatable; default: this one"
    )
    parser.add_argument("--torch-python", default=sys.executable, help="'none' leaves PyTorch out")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="repeatable; default: both")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side that are timed")
    parser.add_argument("--json", type=Path, help="a file for all results")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.dtype[0])

    sides = []
    for given in options.ours_python or [f"ours={sys.executable}"]:
        label, _, python = given.rpartition("=")
        sides.append((label or f"ours, {python}", "ours", python))
    if options.torch_python != "none":
        sides += [(f"PyTorch {side}", side, options.torch_python) for side in ("eager", "compiled")]
    results = []
    for dtype in options.dtype or ["float32", "bfloat16"]:
        results += measure(dtype, sides, options.rounds)
        print(f"\n{dtype}\n{table([x for x in results if x['dtype'] == dtype])}\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "rounds": options.rounds, "results": results}, indent=1))
    return None


if __name__ == "__main__":
    main()
