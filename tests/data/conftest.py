import random
from pathlib import Path

import pytest

from jaxllm.config import DataConfig, ObjectiveConfig, SourceConfig, TokenizerConfig
from jaxllm.data.corpus import Corpus, prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from tests.data.batches import SENTINELS

WORDS = [
    "def",
    "class",
    "return",
    "self",
    "value",
    "name",
    "index",
    "for",
    "while",
    "in",
    "None",
    "import",
    "total",
]


def code_like(seed: int, lines: int) -> str:
    """Text with indentation, digits and punctuation, different for each seed."""
    choose = random.Random(seed)
    return "".join(
        f"{'    ' * choose.randrange(3)}{' '.join(choose.choices(WORDS, k=4))} = {choose.randrange(1000)}\n"
        for _ in range(lines)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture(scope="session")
def code_texts() -> list[str]:
    return [code_like(seed, 40) for seed in range(20)]


@pytest.fixture(scope="session")
def model_path(code_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    train_tokenizer(code_texts, TokenizerConfig(vocab_size=420), path)
    return path


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Tokenizer:
    return load_tokenizer(model_path)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of 40 text files whose lengths lie from one line to 40."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"doc{i:02}.txt").write_text(code_like(i, 1 + i))
    return folder


@pytest.fixture
def data(texts: Path) -> DataConfig:
    source = SourceConfig(kind="text", path=str(texts))
    return DataConfig(sources=(source,), sequence_length=64, validation_fraction=0.2, workers=2)


@pytest.fixture
def corpus(data: DataConfig, model_path: Path) -> Corpus:
    return prepare_corpus(data, TokenizerConfig(path=str(model_path)))


@pytest.fixture(scope="session")
def noisy_path(code_texts, tmp_path_factory) -> Path:
    """A tokenizer with a mask and sentinels."""
    path = tmp_path_factory.mktemp("noisy") / "noisy.model"
    train_tokenizer(code_texts, TokenizerConfig(vocab_size=450, extra_tokens=("<mask>", *SENTINELS)), path)
    return path


@pytest.fixture
def make(texts, noisy_path):
    """A loader of text files; fields of the objective have names of their own."""

    def made(
        kind: str, batch_size: int = 4, seed: int = 0, path: Path = noisy_path, start: int | None = None, **fields
    ):
        objective = {name: fields.pop(name) for name in list(fields) if name in ObjectiveConfig.__dataclass_fields__}
        sources = (SourceConfig(kind="text", path=str(texts)),)
        data = DataConfig(**{"sources": sources, "sequence_length": 64, "validation_fraction": 0.2, **fields})
        corpus = prepare_corpus(data, TokenizerConfig(path=str(path)))
        return Loader(corpus, data, batch_size, seed, ObjectiveConfig(kind=kind, **objective), start)

    return made
