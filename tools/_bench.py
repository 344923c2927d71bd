"""What the benchmarks against PyTorch share: one model on both sides, and processes that take turns.

Each side is a process that lives through a whole benchmark. All start and warm up one after another; then they
take turns, so that all meet the same machine, while the others sleep.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from jaxllm.config import TransformerConfig

ROOT = Path(__file__).parent.parent
VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, FFN = 32_000, 512, 8, 8, 4, 64, 1408
"""A Llama of 56.4M parameters."""
SETTLE = 0.3
"""Seconds between turns; OpenMP threads spin for 0.2 s after their work before they sleep."""


def our_shape(positions: int) -> "TransformerConfig":
    """The model as `jaxllm` names it."""
    from jaxllm.config import TransformerConfig

    return TransformerConfig(
        vocab_size=VOCABULARY,
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD,
        ffn=FFN,
        max_positions=positions,
        tied_embeddings=False,
    )


def their_shape(positions: int) -> "LlamaConfig":
    """The model as transformers names it."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        intermediate_size=FFN,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
    )


def torch_device() -> str:
    """Where PyTorch's side computes: on the accelerator, as ours does, where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peak_mib() -> float:
    """The most memory so far: on the accelerator of arrays, on the CPU of the whole process (VmHWM)."""
    if "jaxllm" in sys.modules:
        import jax

        if stats := jax.local_devices()[0].memory_stats():
            return stats["peak_bytes_in_use"] / 2**20
    elif torch_device() == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def machine() -> dict[str, Any]:
    """What the results are of."""
    return {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}


def answers() -> TextIO:
    """A worker's way back: lines of JSON. What libraries print goes to stderr from here on."""
    way_back = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return way_back


class Worker:
    """A script in a process of its own, which answers each line with a line of JSON, and the start with one too."""

    def __init__(self, label: str, python: str, script: str, *arguments: str):
        self.label = label
        self.process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.about = self._read()

    def ask(self, line: str) -> Any:
        """The answer to a line, once the machine has come to rest."""
        time.sleep(SETTLE)
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """The end of its input ends the process."""
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"'{self.label}' ended (see above); [bench] is the extra with what it needs")
        return json.loads(line)


def alternated(workers: list[Worker], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The steps of each worker, by its label; who begins changes from round to round."""
    turns: dict[str, list[dict[str, float]]] = {worker.label: [] for worker in workers}
    for i in range(rounds):
        for worker in workers[i % len(workers) :] + workers[: i % len(workers)]:
            turns[worker.label].append(worker.ask("step"))
    return turns
