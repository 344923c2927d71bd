import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm.cli.train import train_run
from jaxllm.common.trees import flatten
from jaxllm.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
)
from jaxllm.data.corpus import prepare_corpus
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.loop import open_loader
from jaxllm.train.metrics import read_metrics
from jaxllm.train.report import Report
from jaxllm.train.state import abstract_state
from tests.train.member import row_hashes

WORDS = ["def", "class", "return", "self", "value", "name", "index", "for", "while", "None", "import"]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of 12 steps on 24 small documents, with everything that a run can have; it fits 8 devices."""
    root = tmp_path_factory.mktemp("train")
    texts = root / "texts"
    texts.mkdir()
    for i in range(24):
        choose = random.Random(i)
        lines = (" ".join(choose.choices(WORDS, k=5)) + f" = {choose.randrange(99)}\n" for _ in range(5 + 2 * i))
        (texts / f"doc{i:02}.txt").write_text("".join(lines))
    return RunConfig(
        name="tiny",
        log_every=3,
        model=TransformerConfig(
            vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, ffn=32, max_positions=32
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="text", path=str(texts)),),
            sequence_length=32,
            validation_fraction=0.2,
            cache_dir=str(root / "cache"),
            workers=1,
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
        train=TrainConfig(steps=12, batch_size=8, ema_decay=0.9, compute_dtype="float32"),
        eval=EvalConfig(every=4, max_tokens=256, prompts=()),
        checkpoint=CheckpointConfig(every=4, keep=2),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )


@pytest.fixture(scope="session")
def uninterrupted(recipe: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the recipe's run, trained in one go. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train_run(replace(recipe, output=str(folder))).step == 12
    return folder


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """`at_step(n, act)`: `act()` is called when the line of step n is shown, once."""

    def arrange(step: int, act: Callable[[], Any]) -> None:
        shown = Report.progress

        def progress(report: Report, at: int, *rest: Any) -> None:
            shown(report, at, *rest)
            if at == step:
                monkeypatch.setattr(Report, "progress", shown)
                act()

        monkeypatch.setattr(Report, "progress", progress)

    return arrange


@pytest.fixture(scope="session")
def arrays() -> Callable[[Path, RunConfig, int], dict[str, np.ndarray]]:
    """`arrays(folder, config, step)`: every array of a checkpoint, by its path."""

    def read(folder: Path, config: RunConfig, step: int) -> dict[str, np.ndarray]:
        with Checkpoints(folder) as checkpoints:
            state, _ = checkpoints.restore(abstract_state(config, make_mesh(config.mesh)), step)
        return {path: np.asarray(x) for path, x in flatten(state).items()}

    return read


@pytest.fixture
def ends_like(recipe: RunConfig, uninterrupted: Path, arrays: Callable[..., Any]) -> Callable[[Path], bool]:
    """Whether a run left the last checkpoint and the metrics, but for the speed, of the uninterrupted one."""

    def compare(folder: Path) -> bool:
        here, there = (arrays(f, recipe, 12) for f in (folder, uninterrupted))
        same = here.keys() == there.keys() and all(
            (here[path].dtype, here[path].tobytes()) == (there[path].dtype, there[path].tobytes()) for path in here
        )
        return same and lines_without_speed(folder) == lines_without_speed(uninterrupted)

    return compare


@pytest.fixture(scope="session")
def hashes(recipe: RunConfig, uninterrupted: Path) -> dict[int, dict[int, str]]:
    """The hash of every row of every batch of the recipe's run, by batch and by place in it."""
    corpus = prepare_corpus(recipe.data, TokenizerConfig(path=str(uninterrupted / "tokenizer.model")))
    loader = open_loader(recipe, corpus)
    return {k: row_hashes(loader.batch(k), range(8)) for k in range(12)}


def lines_without_speed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_metrics(folder)]
