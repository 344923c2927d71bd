"""Decode tokens a second, ours against transformers' `generate`, in one run.

    pip install -e .[bench] && python tools/bench_generate.py --json results.json
    python tools/bench_generate.py --ours-python .venv-3.13/bin/python --torch-python .venv/bin/python

A Llama of 56M parameters with random weights continues random prompts greedily, without an end of text. Each side
is a process that lives through the whole run; after a warm-up they take turns, a generation each, so that both
meet the same machine, and the other sleeps. A generation's decode time runs from the moment its first new tokens
are on the host to the last ones', its prefill time up to that moment.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import VOCABULARY, Worker, answers, our_shape, their_shape

PROMPT, NEW = 64, 128

Times = list[float]
"""When each token of a generation was on the host, after the time at which it began."""


def ours(dtype: str) -> tuple[str, Callable[[Any], Times]]:
    """`Generator.tokens`, which is what `jaxllm generate` runs."""
    import jax

    from jaxllm.generation.config import SamplingConfig
    from jaxllm.generation.generate import Generator
    from jaxllm.models.table import parameter_table
    from jaxllm.models.transformer import initial

    model = our_shape(PROMPT + NEW)
    params = initial(jax.random.key(0), parameter_table(model))
    # Tokens in, tokens out: the tokenizer is not asked.
    generator = Generator(model, params, None, dtype=dtype)  # type: ignore[arg-type]
    greedy = SamplingConfig(temperature=0)

    def generation(prompts: Any) -> Times:
        steps = generator.tokens(prompts.tolist(), NEW, greedy)
        return [time.perf_counter(), *(time.perf_counter() for _ in steps)]

    return f"jax {jax.__version__}", generation


def peer(dtype: str) -> tuple[str, Callable[[Any], Times]]:
    """transformers' `generate` with its own cache."""
    import torch
    import transformers
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """Is handed the prompt, then each step's tokens once they are on the host."""

        def __init__(self) -> None:
            self.times: Times = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    model = transformers.LlamaForCausalLM(their_shape(PROMPT + NEW)).to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generation(prompts: Any) -> Times:
        ids, clock = torch.from_numpy(prompts), Clock()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, streamer=clock)
        return clock.times

    return f"torch {torch.__version__}, transformers {transformers.__version__}", generation


SIDES = {"ours": ours, "transformers": peer}


def serve(side: str, dtype: str, batches: list[int]) -> None:
    """A worker: a batch size comes in, and the seconds of a prefill and a decode go out."""
    import numpy as np

    way_back = answers()
    version, generation = SIDES[side](dtype)
    prompts = {b: np.random.default_rng(0).integers(VOCABULARY, size=(b, PROMPT)) for b in batches}
    for batch in batches:
        generation(prompts[batch])
    print(json.dumps(version), file=way_back)
    for line in sys.stdin:
        times = generation(prompts[int(line)])
        assert len(times) == 1 + NEW
        print(json.dumps([times[1] - times[0], times[-1] - times[1]]), file=way_back)


def rates(batch: int, turns: list[list[float]]) -> tuple[float, float, float]:
    """Tokens a second: of decode (the median of the turns, and the best) and of prefill (the median)."""
    prefill, decode = zip(*turns, strict=True)
    new = batch * (NEW - 1)
    return new / statistics.median(decode), new / min(decode), batch * PROMPT / statistics.median(prefill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ours-python", default=sys.executable)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, action="append", help="rows; repeatable; default: 1 and 8")
    parser.add_argument("--rounds", type=int, default=9, help="generations of each side and batch that are timed")
    parser.add_argument("--json", type=Path, help="a file for all timings")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    batches = options.batch or [1, 8]
    if options.serve:
        return serve(options.serve, options.dtype, batches)

    arguments = ["--dtype", options.dtype, *(f"--batch={batch}" for batch in batches)]
    pythons = {"ours": options.ours_python, "transformers": options.torch_python}
    workers = [Worker(side, python, __file__, "--serve", side, *arguments) for side, python in pythons.items()]
    turns: dict[str, dict[int, list[list[float]]]] = {side: {batch: [] for batch in batches} for side in pythons}
    for i in range(options.rounds):
        for batch in batches:
            for worker in workers if i % 2 else workers[::-1]:
                turns[worker.label][batch].append(worker.ask(str(batch)))
    for worker in workers:
        worker.close()

    print(f"{options.dtype}, tokens a second and their ratio to transformers'")
    print(f"{'batch':>6} {'':12}{'decode':>9}{'ratio':>7}{'best':>9}{'ratio':>7}{'prefill':>9}{'ratio':>7}")
    for batch in batches:
        theirs = rates(batch, turns["transformers"][batch])
        for worker in workers:
            pairs = zip(rates(batch, turns[worker.label][batch]), theirs, strict=True)
            cells = "".join(f"{rate:9.0f}{rate / base:7.2f}" for rate, base in pairs)
            print(f"{batch:6} {worker.label:12}{cells}  {worker.about}")
    if options.json:
        results = {worker.label: {"version": worker.about, "seconds": turns[worker.label]} for worker in workers}
        options.json.write_text(json.dumps({"dtype": options.dtype, **results}, indent=1))
    return None


if __name__ == "__main__":
    main()
