"""What a run writes down: `metrics.jsonl` and TensorBoard events, and how fast it went.

A line of `metrics.jsonl` is an object with `step` and, of training, `loss` (nats a token, weighed as in the gradient;
what is held out is weighed by tokens), `bits_per_byte`,
`grad_norm`, `learning_rate`, `tokens` (trained on so far), `tokens_per_second`, `mfu` and `skipped`; or, of held-out
text, `held_out_loss`, `held_out_perplexity`, `held_out_bits_per_byte` and `held_out_tokens`, with `final_` in place of
`held_out_` for the evaluation at the end.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from jaxllm.config import RunConfig
from jaxllm.data.loader import Loader
from jaxllm.models.summary import run_flops
from jaxllm.train.run_folder import writing_in

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 FLOP/s of one device, by the start of its kind; from the makers' data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """Of a `jax.Device.device_kind`: the entry with the longest name that it starts with, or none."""
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; one that a dying process cut short ends them."""
    lines: list[dict[str, Any]] = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Journal:
    """Metrics of a run, as lines and as TensorBoard events, from just after `step` on. A context.

    What an earlier process wrote of later steps is dropped, so that a resumed run leaves what an uninterrupted
    one would have left.
    """

    def __init__(self, folder: Path, step: int):
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        path = folder / "metrics.jsonl"
        writing = folder / "metrics.writing"
        writing.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(writing, path)
        self._folder = folder
        # Unbuffered: nothing is left that could fail when it is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by __exit__
        (folder / "events").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then closing it waits for ever.
        self._events = EventsWriter(str(folder / "events" / "events"), f".{step}")
        # Tells TensorBoard to hide what an earlier process wrote from here on.
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # of what `write` could not flush, and said so
            self._events.close()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds a line; a value that is not finite becomes null, the one word that JSON has for it.

        Raises:
            UserError: the folder cannot be written.
        """
        finite = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        with writing_in(self._folder):
            self._file.write((json.dumps({"step": step, **finite}) + "\n").encode())
            for name, value in values.items():
                if value is not None:
                    summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                    self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            self._events.flush()


class Meter:
    """Turns the metrics of steps into lines: bits a byte, the speed of the steps alone, and the time that is left."""

    def __init__(self, config: RunConfig, loader: Loader, steps: int):
        """
        Args:
            config: the run.
            loader: its data, which say how many bytes a token stands for.
            steps: that are to come.
        """
        self._bytes_per_token = _bytes_per_token(loader) if config.objective.kind == "causal" else None
        # Of other objectives most tokens are no targets, and only those are counted.
        peak = peak_flops(jax.devices()[0].device_kind) if config.objective.kind == "causal" else None
        flops = run_flops(config).total
        self._peak_tokens = peak and peak * jax.device_count() / flops
        self._left, self._done = steps, 0
        self._tokens, self._seconds = 0.0, 0.0
        self._began = self._last = time.perf_counter()

    def step(self, tokens: float) -> None:
        """A step has ended, which trained on so many tokens."""
        now = time.perf_counter()
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + now - self._last
        self._last = now
        self._left, self._done = self._left - 1, self._done + 1

    def restart(self) -> None:
        """Since the last step ended there was something else to do."""
        self._last = time.perf_counter()

    def line(self, metrics: Mapping[str, float], tokens: int) -> dict[str, float | None]:
        """The line of a step, with the speed since the line before; `tokens` are those of the whole run so far."""
        speed = self._tokens / self._seconds
        self._tokens, self._seconds = 0.0, 0.0
        return {
            "loss": metrics["loss"],
            "bits_per_byte": self._bytes_per_token and metrics["loss"] / math.log(2) / self._bytes_per_token,
            "grad_norm": metrics["grad_norm"],
            "learning_rate": metrics["learning_rate"],
            "tokens": tokens,
            "tokens_per_second": speed,
            "mfu": self._peak_tokens and speed / self._peak_tokens,
            "skipped": metrics["skipped"],
        }

    def seconds_left(self) -> float:
        """At the rate so far, evaluations and checkpoints included."""
        return (time.perf_counter() - self._began) / self._done * self._left


def _bytes_per_token(loader: Loader) -> float:
    """Bytes of training text that a target stands for, in the mixture's proportions."""
    tasks = zip(loader.row_shares, loader.corpus.train, loader.plans, strict=True)
    return sum(share * text.bytes / plan.pairs for share, text, plan in tasks if share > 0)
