"""Tokens a second and peak memory of a step of LoRA, ours against PEFT's in a plain loop and in TRL's SFTTrainer.

    pip install -e .[bench] && python tools/bench_tuning.py --json results.json
    python tools/bench_tuning.py --ours-python jax-0.10=.venv/bin/python --ours-python jax-0.12=.venv-3.13/bin/python

One step is forward, backward, clipping by the global norm and AdamW of LoRA with rank 8 on all linear maps of the
blocks, or on queries and values, of a model of SmolLM2-135M's shape (random weights) and 4 rows of 256 tokens, or
`--rows`; a turn is a step. `--targets full` trains all parameters instead. SFTTrainer runs as it is, but without the
gradient checkpointing that it turns on by itself, which saves memory and costs time; it takes the rows of a step before
the clock starts.
bfloat16 is autocast in PyTorch and `train.compute_dtype` here, in both over float32 weights. Devices and peak memory
are as in `bench_train.py`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import Worker, alternated, answers, machine, peak_mib, torch_device
from bench_train import CLIP, WARMUP, timed

LENGTH, RANK, RATE = 256, 8, 2e-4
TARGETS = {
    "linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "query_value": ["q_proj", "v_proj"],
}

Step = Callable[[], float]


def tokens(rows: int) -> Any:
    """The rows of all sides."""
    import numpy as np

    return np.random.default_rng(0).integers(49_152, size=(rows, LENGTH), dtype=np.int32)


def ours(targets: str, dtype: str, rows: int) -> tuple[Step, dict[str, Any]]:
    """The step of `jaxllm train`, compiled as its loop compiles it."""
    import jax
    import numpy as np

    from jaxllm.config import LoraConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, TuningConfig
    from jaxllm.models.adapters import frozen_table, trained_table
    from jaxllm.models.presets import SMOLLM2_135M
    from jaxllm.models.transformer import initial
    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.placement import place
    from jaxllm.train.state import abstract_state, initial_state
    from jaxllm.train.step import make_step

    lora = TuningConfig(method="lora", lora=LoraConfig(targets=(targets,), rank=RANK, alpha=2 * RANK))
    config = RunConfig(
        base="random numbers",
        model=SMOLLM2_135M,
        tuning=TuningConfig() if targets == "full" else lora,
        optimizer=OptimizerConfig(
            learning_rate=RATE, weight_decay=0.0, clip_norm=CLIP, schedule=ScheduleConfig(kind="constant")
        ),
        train=TrainConfig(batch_size=rows, compute_dtype=dtype),  # type: ignore[arg-type]
    )
    mesh, ids = make_mesh(config.mesh), tokens(rows)
    batch = place(
        {
            "tokens": ids,
            "targets": np.roll(ids, -1, axis=1),
            "weights": np.ones(ids.shape, np.float32),
            "segments": np.ones_like(ids),
            "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape),
        },
        mesh,
    )
    with jax.set_mesh(mesh):
        frozen = jax.jit(lambda: initial(jax.random.key(0), frozen_table(config)))()
    step_of: Any = make_step(config, mesh)
    program = step_of.lower(abstract_state(config, mesh), batch, frozen).compile()
    state = initial_state(config, mesh)

    def step() -> float:
        nonlocal state
        state, metrics = program(state, batch, frozen)
        return jax.block_until_ready((state, metrics))[1]["loss"].item()

    trained = sum(leaf.size for leaf in trained_table(config).values())
    return step, {"version": f"jax {jax.__version__}", "trained": trained}


def their_model(targets: str) -> Any:
    """SmolLM2-135M by transformers, with PEFT's LoRA."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(shape).to(torch_device())
    if targets == "full":
        return model
    lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora)


def about(model: Any) -> dict[str, Any]:
    """Versions, and what is trained."""
    import peft
    import torch
    import transformers

    version = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return {"version": version, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def plain(targets: str, dtype: str, rows: int) -> tuple[Step, dict[str, Any]]:
    """PEFT in a loop of a few lines."""
    import torch

    model = their_model(targets).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
    ids = torch.from_numpy(tokens(rows)).long().to(torch_device())

    def step() -> float:
        with torch.autocast(torch_device(), dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, about(model)


def serve(side: str, targets: str, dtype: str, rows: int) -> None:
    """A worker: one line in is one step, one JSON line out is what came of it."""
    way_back = answers()
    if side == "trainer":
        return serve_trainer(way_back, targets, dtype, rows)
    step, told = (ours if side == "ours" else plain)(targets, dtype, rows)
    for _ in range(WARMUP):
        step()
    print(json.dumps(told), file=way_back)
    for _ in sys.stdin:
        print(json.dumps(timed(step)), file=way_back)
    return None


def serve_trainer(way_back: Any, targets: str, dtype: str, rows: int) -> None:
    """The same of TRL's SFTTrainer, which waits for a line before each of its steps."""
    import tempfile

    import datasets
    import torch
    import transformers
    import trl

    class Turns(transformers.TrainerCallback):
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARMUP:
                told = about(model)
                print(json.dumps({**told, "version": f"{told['version']}, trl {trl.__version__}"}), file=way_back)
            if state.global_step >= WARMUP and not sys.stdin.readline():
                os._exit(0)
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step > WARMUP:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                turn = {"seconds": time.perf_counter() - self.began, "loss": 0.0, "peak_mib": peak_mib()}
                print(json.dumps(turn), file=way_back)

    model = their_model(targets)
    ids = tokens(rows).tolist() * 100
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            max_length=LENGTH,
            max_steps=1_000_000,
            learning_rate=RATE,
            weight_decay=0.0,
            max_grad_norm=CLIP,
            lr_scheduler_type="constant",
            use_cpu=torch_device() == "cpu",
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        words = transformers.PreTrainedTokenizerFast(
            tokenizer_object=_tokenizer(), pad_token="<pad>", eos_token="<pad>"
        )
        data = datasets.Dataset.from_dict({"input_ids": ids})
        trl.SFTTrainer(
            model=model, args=arguments, train_dataset=data, processing_class=words, callbacks=[Turns()]
        ).train()


def _tokenizer() -> Any:
    """One that the trainer asks for, and nothing is read with."""
    import tokenizers

    return tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))


def measure(
    targets: str, dtype: str, rows: int, sides: list[tuple[str, str, str]], rounds: int
) -> list[dict[str, Any]]:
    """Results of all sides (label, side, interpreter)."""
    workers: list[Worker] = []
    try:
        for label, side, python in sides:
            serving = ("--serve", side, "--targets", targets, "--dtype", dtype, "--rows", str(rows))
            workers.append(Worker(label, python, __file__, *serving))
            print(f"{targets}, {dtype}: {label} is ready", flush=True)
        if len({worker.about["trained"] for worker in workers}) > 1:
            sys.exit(f"what is trained differs: {[(w.label, w.about['trained']) for w in workers]}")
        turns = alternated(workers, rounds)
    finally:
        for worker in workers:
            worker.close()
    return [{"label": w.label, **w.about, **summary(turns[w.label])} for w in workers]


def summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    """Of one side."""
    seconds = [turn["seconds"] for turn in turns]
    return {"seconds": seconds, "median": statistics.median(seconds), "peak_mib": turns[-1]["peak_mib"]}


def table(results: list[dict[str, Any]], rows: int) -> str:
    """Medians, and ratios to the quickest and to the smallest of the others."""
    others = [x for x in results if "torch" in x["version"]]
    lines = [f"{'':24}{'tokens/s':>10}{'seconds':>9}{'fastest':>9}{'slowest':>9}{'MiB':>8}{'speed':>8}{'memory':>8}"]
    for x in results:
        seconds = x["seconds"]
        line = f"{x['label']:24}{rows * LENGTH / x['median']:10.0f}{x['median']:9.3f}{min(seconds):9.3f}"
        line += f"{max(seconds):9.3f}{x['peak_mib']:8.0f}"
        if others:
            line += f"{min(o['median'] for o in others) / x['median']:8.2f}"
            line += f"{x['peak_mib'] / min(o['peak_mib'] for o in others):8.2f}"
        lines.append(f"{line}  {x['version']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ours-python", action="append", metavar="[LABEL=]PYTHON", help="repeatable; default: this")
    parser.add_argument("--torch-python", default=sys.executable, help="'none' leaves PyTorch out")
    parser.add_argument("--targets", choices=["linear", "query_value", "full"], default="linear")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=4, help="of 256 tokens, in a step")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side that are timed")
    parser.add_argument("--json", type=Path, help="a file for all results")
    parser.add_argument("--serve", choices=["ours", "plain", "trainer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.targets, options.dtype, options.rows)
    sides = []
    for given in options.ours_python or [f"ours={sys.executable}"]:
        label, _, python = given.rpartition("=")
        sides.append((label or f"ours, {python}", "ours", python))
    if options.torch_python != "none":
        sides += [("PEFT, plain loop", "plain", options.torch_python)]
        sides += [("PEFT, TRL's SFTTrainer", "trainer", options.torch_python)]
    results = measure(options.targets, options.dtype, options.rows, sides, options.rounds)
    what = "all parameters" if options.targets == "full" else f"LoRA on {options.targets}"
    print(f"\n{what}, {options.dtype}\n{table(results, options.rows)}\n", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({**machine(), "rows": options.rows, "rounds": options.rounds, "results": results}, indent=1)
        )
    return None


if __name__ == "__main__":
    main()
