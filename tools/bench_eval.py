"""Choices and texts a second of an evaluation, ours against lm-eval's `HFLM`, on the same rows, in one run.

    pip install -e .[bench,eval] && jaxllm export models/smollm2-135m-instruct smollm2
    python tools/bench_eval.py models/smollm2-135m-instruct smollm2 choices.jsonl texts.jsonl
    python tools/bench_eval.py ... --ours-python .venv/bin/python --torch-python .venv-torch/bin/python

Both read plain prompts as lm-eval's tasks make them: a choice after a space. Rows are as `jaxllm eval` takes them; each
file is of one kind. Each side is a process that lives through the whole run; they take turns, all rows of a file each,
and the other sleeps. The first turn of each, with all that is compiled in it, is told apart. That both find the same is
checked: log-probabilities to 1e-3, and how many texts are equal is told. In float32.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from _bench import Worker, answers

Way = Callable[[list[Any]], list[Any]]
"""From requests to what lm-eval wants for them."""


def ours(options: argparse.Namespace) -> tuple[str, Any]:
    """The adapter, over our scorer and generator."""
    import jax

    from jaxllm.evaluation.harness import Adapter
    from jaxllm.evaluation.model import open_model

    model = open_model(options.model, chat=False, dtype="float32")
    return f"jax {jax.__version__}", Adapter(model, options.batch, lambda *_: lambda done: None)


def theirs(options: argparse.Namespace) -> tuple[str, Any]:
    """What `lm_eval --model hf` runs."""
    import importlib.metadata

    import torch
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=options.published, dtype="float32", batch_size=options.batch, device="cpu")
    return f"lm-eval {importlib.metadata.version('lm-eval')}, torch {torch.__version__}", model


SIDES = {"ours": ours, "HFLM": theirs}


def requests_of(path: str, new_tokens: int) -> tuple[str, list[Any]]:
    """The method of `LM` that a file is for, and its requests."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if "choices" in rows[0]:
        pairs = [(row["prompt"], f" {choice}") for row in rows for choice in row["choices"]]
        return "loglikelihood", [SimpleNamespace(args=pair) for pair in pairs]
    settings = {"until": ["\n\n"], "max_gen_toks": new_tokens, "do_sample": False}
    return "generate_until", [SimpleNamespace(args=(row["prompt"], dict(settings))) for row in rows]


def serve(options: argparse.Namespace) -> None:
    """A worker: a file comes in, and the seconds and what was found go out."""
    way_back = answers()
    version, model = SIDES[options.serve](options)
    print(json.dumps(version), file=way_back)
    for line in sys.stdin:
        method, requests = requests_of(line.strip(), options.new_tokens)
        began = time.perf_counter()
        found = getattr(model, method)(requests)
        print(json.dumps([time.perf_counter() - began, found]), file=way_back)


def compared(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """How far both found the same."""
    if isinstance(ours[0], str):
        return f"{sum(map(str.__eq__, ours, theirs))} of {len(ours)} texts are equal"
    apart = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    assert apart < 1e-3, f"log-probabilities differ by {apart}"
    return f"log-probabilities differ by at most {apart:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a model folder of ours")
    parser.add_argument("published", help="the same model as a Hugging Face folder")
    parser.add_argument("files", nargs="+", help="rows")
    parser.add_argument("--ours-python", default=sys.executable)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side and file that are timed, after one")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)

    given = [options.model, options.published, *options.files]
    sizes = [f"--batch={options.batch}", f"--new-tokens={options.new_tokens}"]
    pythons = {"ours": options.ours_python, "HFLM": options.torch_python}
    workers = [Worker(side, python, __file__, *given, *sizes, "--serve", side) for side, python in pythons.items()]
    for file in options.files:
        turns: dict[str, list[float]] = {side: [] for side in pythons}
        found: dict[str, Any] = {}
        for i in range(1 + options.rounds):
            for worker in workers if i % 2 else workers[::-1]:
                seconds, found[worker.label] = worker.ask(file)
                turns[worker.label].append(seconds)
                print(f"{worker.label}: {seconds:.1f} s", file=sys.stderr, flush=True)
        print(f"{file}: {len(found['ours'])} requests; {compared(found['ours'], found['HFLM'])}")
        medians = {side: statistics.median(seconds[1:]) for side, seconds in turns.items()}
        for worker in workers:
            first, median = turns[worker.label][0], medians[worker.label]
            rate, ratio = len(found["ours"]) / median, medians["HFLM"] / median
            print(
                f"  {worker.label:6}{rate:8.2f}/s {ratio:6.2f}   first turn {first:.1f} s   {worker.about}", flush=True
            )
    for worker in workers:
        worker.close()
    return None


if __name__ == "__main__":
    main()
