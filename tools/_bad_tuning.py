"""Cases of `bad_inputs.py` about tuning: `lora` is a run that has trained an adapter of the model in `run`."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _bad_models import Case

LORA = ("--output", "lora", "--base", "run", "--tuning.method", "lora", "--tuning.lora.rank", "2", "--train.steps", "4")
"""What makes `lora` of the good recipe."""


def tuned(*options: str) -> Callable[[], Sequence[str]]:
    """`jaxllm train` of a run that begins with `run`, with such options."""
    return lambda: ["train", "recipe.py", "--output", "new", "--base", "run", "--tuning.method", "lora", *options]


def another_base(*argv: str) -> Callable[[], Sequence[str]]:
    """Such words, where `lora` was trained on a model that is not in `run`."""

    def arrange() -> Sequence[str]:
        origin = json.loads(Path("lora/base.json").read_text()) | {"fingerprint": "0123456789abcdef"}
        Path("lora/base.json").write_text(json.dumps(origin))
        return argv

    return arrange


def tuning_cases() -> Iterator[Case]:
    """Bases, adapters and what is trained of them."""
    yield "LoRA target that matches nothing", tuned("--tuning.lora.targets", "atention/quary")
    yield "LoRA target that is no regex", tuned("--tuning.lora.targets", "attention/(query")
    yield "rank above the dimension", tuned("--tuning.lora.rank", "64")
    yield "average of ranks that go", tuned("--tuning.method", "adalora", "--train.ema-decay", "0.9")
    unread = ("--tuning.base-dtype", "int8", "--tuning.lora.dropout", "0.1", "--tuning.prompt.labels", "def")
    yield "settings that the method does not read", tuned("--tuning.method", "full", *unread)
    yield "gates around DoRA", tuned("--tuning.method", "hybrid", "--tuning.lora.magnitudes")
    yield "tuned parameters that match nothing", tuned("--tuning.also", "norm/scle")
    yield "method without a base", lambda: ["train", "recipe.py", "--output", "new", "--tuning.method", "lora"]
    yield "base that is not there", lambda: ["train", "recipe.py", "--output", "new", "--base", "rnu"]
    yield "base that is no model", lambda: ["train", "recipe.py", "--output", "new", "--base", "texts"]
    yield "base of another shape", tuned("--model.ffn", "48")
    yield "base whose adapter has another base", another_base("train", "recipe.py", "--output", "new", "--base", "lora")
    yield "virtual tokens that fill the row", tuned("--tuning.method", "prompt", "--tuning.prompt.length", "32")
    yield (
        "virtual tokens that begin as no labels",
        tuned("--tuning.method", "prompt", "--tuning.prompt.start", "labels"),
    )
    yield "NF4 that the mesh cuts", tuned("--tuning.base-dtype", "nf4", "--mesh.fsdp", "8", "--train.batch-size", "8")
    yield "adapter for another base", another_base("generate", "lora", "def")
    yield "adapter chosen for another base", another_base("generate", "run", "def", "--adapter", "lora")
    yield "adapter that is a whole model", lambda: ["generate", "run", "def", "--adapter", "run"]
    yield "more adapters than prompts", lambda: ["generate", "run", "def", "--adapter", "lora", "--adapter", "none"]
    yield "export of an adapter that is none", lambda: ["adapter", "export", "run", "peft"]
    yield "name that is too long", lambda: ["adapter", "export", "lora", "x" * 300]
    yield "import of an adapter that is none", lambda: ["adapter", "import", "texts", "new", "--base", "run"]
    yield "merge into a folder that holds something", lambda: ["adapter", "merge", "lora", "texts"]
    yield "unmerge with an adapter that is none", lambda: ["adapter", "unmerge", "run", "run", "new"]
    yield "unmerge from what is no model", lambda: ["adapter", "unmerge", "texts", "lora", "new"]
    yield "adapters of which one is a whole model", lambda: ["adapter", "combine", "new", "lora", "run"]
