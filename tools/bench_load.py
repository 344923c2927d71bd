"""Seconds and peak memory until a published model lies in memory, ours against transformers' `from_pretrained`.

    pip install -e .[bench] && python tools/bench_load.py SmolLM2-135M/ --ours models/smollm2-135m-instruct

Each load is a process of its own: libraries are imported, then the clock starts; it stops when every parameter has been
read once (a sum of all, since files that are only mapped were not loaded). Sides take turns; medians are printed. Peak
memory is the most that a process held, beyond what it held when the clock started. `import` converts the Hugging Face
folder, `ours` reads the model folder that came of it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def importing(options: argparse.Namespace) -> Callable[[], Any]:
    """`jaxllm import`, without the files that it writes."""
    import jax
    import jax.numpy as jnp

    from jaxllm.config import MeshConfig
    from jaxllm.interop.convert import load, plan_import
    from jaxllm.interop.open import open_published
    from jaxllm.sharding.mesh import make_mesh

    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def run() -> Any:
        published = open_published(options.published)
        conversion = plan_import(published)
        params = load(published, conversion, mesh, conversion.dtype)
        return sum(float(jnp.sum(leaf, dtype=jnp.float32)) for leaf in jax.tree.leaves(params))

    return run


def ours(options: argparse.Namespace) -> Callable[[], Any]:
    """What `jaxllm generate` reads."""
    import jax
    import jax.numpy as jnp

    from jaxllm.train.params import load_run_params

    def run() -> Any:
        _, params, _ = load_run_params(options.ours)
        return sum(float(jnp.sum(leaf, dtype=jnp.float32)) for leaf in jax.tree.leaves(params))

    return run


def theirs(options: argparse.Namespace) -> Callable[[], Any]:
    """In the type of the file, as it is."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def run() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.published, dtype="auto")
        return sum(float(p.sum(dtype=torch.float32)) for p in model.parameters())

    return run


SIDES = {"transformers": theirs, "import": importing, "ours": ours}


class Peak(threading.Thread):
    """The most resident memory, without the pages of files that are only mapped, sampled every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ends = 0, False

    def run(self) -> None:
        while not self.ends:
            self.most = max(self.most, anonymous())
            time.sleep(0.005)


def anonymous() -> int:
    """Bytes of memory that are this process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def serve(options: argparse.Namespace) -> None:
    """One load."""
    run = SIDES[options.serve](options)
    before, peak = anonymous(), Peak()
    peak.start()
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    peak.ends = True
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, (max(peak.most, anonymous()) - before) / 2**20, whole]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("published", type=Path, help="a Hugging Face folder of a decoder")
    parser.add_argument("--ours", type=Path, help="the model folder that jaxllm import made of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)
    sides = [side for side in SIDES if side != "ours" or options.ours]
    found: dict[str, list[list[float]]] = {side: [] for side in sides}
    for i in range(options.rounds + 1):  # the first one fills the page cache
        for side in sides if i % 2 else sides[::-1]:
            ran = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--serve", side], stdout=subprocess.PIPE, check=True
            )
            if i:
                found[side].append(json.loads(ran.stdout.splitlines()[-1]))
    size = sum(path.stat().st_size for path in options.published.glob("*.safetensors")) / 2**20
    print(f"'{options.published}', {size:,.0f} MiB of weights; medians of {options.rounds}")
    for side in sides:
        seconds, own, whole = (statistics.median(column) for column in zip(*found[side], strict=True))
        base = statistics.median(turn[0] for turn in found["transformers"])
        print(
            f"{side:13} {seconds:7.2f} s ({base / seconds:.2f} times as fast), {own:7,.0f} MiB of its own at most, "
            f"{whole:7,.0f} MiB with mapped files and libraries"
        )
    return None


if __name__ == "__main__":
    main()
