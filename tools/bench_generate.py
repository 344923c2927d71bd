"""Decode tokens a second, ours against transformers' `generate` and llama.cpp, in one run.

    pip install -e .[bench] && python tools/bench_generate.py --json results.json
    python tools/bench_generate.py --ours-python .venv-3.13/bin/python --torch-python .venv/bin/python
    jaxllm export models/smollm2-135m-instruct smollm2 && python tools/bench_generate.py \
        --model models/smollm2-135m-instruct --published smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf

A Llama of 56M parameters with random weights, or a model folder and what was exported of it, continues random prompts
greedily, without an end of text. llama.cpp (`pip install llama-cpp-python`), where a GGUF file is given, decodes one
row alone, since its Python interface has no batches. Each side
is a process that lives through the whole run; after a warm-up they take turns, a generation each, so that both
meet the same machine, and the other sleeps. A generation's decode time runs from the moment its first new tokens
are on the host to the last ones', its prefill time up to that moment.
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

from _bench import VOCABULARY, Worker, answers, our_shape, their_shape

PROMPT, NEW = 64, 128

Times = list[float]
"""When each token of a generation was on the host, after the time at which it began."""


def ours(options: argparse.Namespace) -> tuple[str, Callable[[Any], Times]]:
    """`Generator.tokens`, which is what `jaxllm generate` runs."""
    import jax

    from jaxllm.generation.config import SamplingConfig
    from jaxllm.generation.generate import Generator
    from jaxllm.models.table import parameter_table
    from jaxllm.models.transformer import initial
    from jaxllm.train.params import load_run_params

    if options.model:
        config, params, _ = load_run_params(options.model)
        model = config.model
    else:
        model = our_shape(PROMPT + NEW)
        params = initial(jax.random.key(0), parameter_table(model))
    # Tokens in, tokens out: the tokenizer is not asked.
    generator = Generator(model, params, None, dtype=options.dtype)  # type: ignore[arg-type]
    del params
    greedy = SamplingConfig(temperature=0)

    def generation(prompts: Any) -> Times:
        steps = generator.tokens(prompts.tolist(), NEW, greedy)
        return [time.perf_counter(), *(time.perf_counter() for _ in steps)]

    return f"jax {jax.__version__}", generation


def peer(options: argparse.Namespace) -> tuple[str, Callable[[Any], Times]]:
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

    if options.published:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.published)
    else:
        model = transformers.LlamaForCausalLM(their_shape(PROMPT + NEW))
    model = model.to(getattr(torch, options.dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generation(prompts: Any) -> Times:
        ids, clock = torch.from_numpy(prompts), Clock()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, streamer=clock)
        return clock.times

    return f"torch {torch.__version__}, transformers {transformers.__version__}", generation


def llama_cpp(options: argparse.Namespace) -> tuple[str, Callable[[Any], Times]]:
    """Its evaluation of one token after another, as its own loop does."""
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(options.gguf, n_ctx=PROMPT + NEW, n_threads=os.cpu_count(), verbose=False, logits_all=False)

    def generation(prompts: Any) -> Times:
        model.reset()
        times, tokens = [time.perf_counter()], prompts[0].tolist()
        for _ in range(NEW):
            model.eval(tokens)
            tokens = [int(np.argmax(model._ctx.get_logits_ith(-1)[: model.n_vocab()]))]
            times.append(time.perf_counter())
        return times

    return f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", generation


SIDES = {"ours": ours, "transformers": peer, "llama.cpp": llama_cpp}


def serve(options: argparse.Namespace) -> None:
    """A worker: a batch size comes in, and the seconds of a prefill and a decode go out."""
    import numpy as np

    way_back = answers()
    version, generation = SIDES[options.serve](options)
    prompts = {b: np.random.default_rng(0).integers(3, VOCABULARY, size=(b, PROMPT)) for b in options.batch}
    for batch in options.batch:
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
    parser.add_argument("--model", type=Path, help="a model folder of ours")
    parser.add_argument("--published", type=Path, help="the same model as a Hugging Face folder")
    parser.add_argument("--gguf", help="the same model as a GGUF file, for llama.cpp")
    parser.add_argument("--batch", type=int, action="append", help="rows; repeatable; default: 1 and 8")
    parser.add_argument("--rounds", type=int, default=9, help="generations of each side and batch that are timed")
    parser.add_argument("--json", type=Path, help="a file for all timings")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    batches = options.batch = options.batch or [1, 8]
    if options.serve:
        return serve(options)

    arguments = ["--dtype", options.dtype, *(f"--batch={batch}" for batch in batches)]
    for name in ("model", "published", "gguf"):
        arguments += [f"--{name}={getattr(options, name)}"] * (getattr(options, name) is not None)
    pythons = {"ours": options.ours_python, "transformers": options.torch_python}
    if options.gguf:
        pythons["llama.cpp"] = options.torch_python
    workers = [Worker(side, python, __file__, "--serve", side, *arguments) for side, python in pythons.items()]
    turns: dict[str, dict[int, list[list[float]]]] = {side: {batch: [] for batch in batches} for side in pythons}
    for i in range(options.rounds):
        for batch in batches:
            for worker in workers if i % 2 else workers[::-1]:
                if batch == 1 or worker.label != "llama.cpp":
                    turns[worker.label][batch].append(worker.ask(str(batch)))
    for worker in workers:
        worker.close()

    print(f"{options.dtype}, tokens a second and their ratio to transformers'")
    print(f"{'batch':>6} {'':12}{'decode':>9}{'ratio':>7}{'best':>9}{'ratio':>7}{'prefill':>9}{'ratio':>7}")
    for batch in batches:
        theirs = rates(batch, turns["transformers"][batch])
        for worker in (worker for worker in workers if turns[worker.label][batch]):
            pairs = zip(rates(batch, turns[worker.label][batch]), theirs, strict=True)
            cells = "".join(f"{rate:9.0f}{rate / base:7.2f}" for rate, base in pairs)
            print(f"{batch:6} {worker.label:12}{cells}  {worker.about}")
    if options.json:
        results = {worker.label: {"version": worker.about, "seconds": turns[worker.label]} for worker in workers}
        options.json.write_text(json.dumps({"dtype": options.dtype, **results}, indent=1))
    return None


if __name__ == "__main__":
    main()
