"""`jaxllm tokenizer`: trains a SentencePiece tokenizer on any source."""

import os
from dataclasses import dataclass
from typing import Literal

import tyro
from rich.table import Table

from jaxllm.common.console import plain_console
from jaxllm.common.paths import user_path
from jaxllm.config import TokenizerConfig, UserError
from jaxllm.validation import RANGES


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a SentencePiece tokenizer; a recipe then takes it by `--tokenizer.path FILE`."""

    out: str
    """The file to write; its name ends in `.model`."""
    sources: tuple[str, ...] = ("stdlib",)
    """Each `stdlib`, a file, or KIND:PATH, with a kind of tfds, text, jsonl, parquet or code (`code:src`)."""
    field: str = "text"
    """The field that holds the text (jsonl, parquet, tfds)."""
    vocab_size: int = 4096
    """Pieces, the 256 bytes and 12 special ones included."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """The algorithm; unigram takes far longer to train."""
    train_megabytes: float = 8.0
    """Text that the trainer is shown, sampled from the training documents."""
    validation_fraction: float = 0.05
    """Share of documents, by the hash of their names or texts as in training, that the trainer never sees; they measure
    it."""
    cache_dir: str | None = None
    """Where the embedded corpus is prepared; none means the default cache."""


def run(argv: list[str]) -> int:
    """Trains, writes the file and prints what it is worth.

    Raises:
        UserError: a source, a size or an output file that will not do.
    """
    command = tyro.cli(Command, args=argv, prog="jaxllm tokenizer")
    from jaxllm.data.cache import cache_root
    from jaxllm.data.progress import status
    from jaxllm.data.sources import open_source, parse_source
    from jaxllm.data.split import Split
    from jaxllm.data.survey import sample, survey
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.data.tokenizer_training import train_tokenizer

    for field in ("tokenizer.vocab_size", "tokenizer.train_megabytes", "data.validation_fraction"):
        name = field.rpartition(".")[2]
        if not RANGES[field].holds(value := getattr(command, name)):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {RANGES[field]}")
    out = user_path(command.out)
    if out.suffix != ".model":
        raise UserError(f"--out '{command.out}': the name of a SentencePiece model ends in '.model'")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK | os.X_OK)):
        raise UserError(f"--out '{command.out}' cannot be written: '{out.parent}' is no folder that can be written in")
    configs = [parse_source(text, command.field) for text in command.sources]
    sources = [open_source(config, cache_root(command.cache_dir)) for config in configs]
    found = survey(sources, Split(command.validation_fraction), progress=True)
    settings = TokenizerConfig(
        vocab_size=command.vocab_size, model_type=command.model_type, train_megabytes=command.train_megabytes
    )
    with status(f"Training a tokenizer of {settings.vocab_size} pieces", shown=True):
        try:
            train_tokenizer(sample(sources, found, settings.train_megabytes), settings, out)
        except OSError as error:
            raise UserError(f"--out '{command.out}' cannot be written: {error.strerror}") from None

    tokenizer = load_tokenizer(out)
    held_out = command.validation_fraction > 0
    texts = list(sample(sources, found, 1.0, held_out))
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    table = Table("", "", title=str(out), show_header=False)
    table.add_row("pieces", f"{tokenizer.vocab_size:,}")
    table.add_row("documents", f"{len(found.size):,} ({found.duplicates:,} duplicates dropped)")
    table.add_row(
        f"bytes a token, {'held-out' if held_out else 'training'} text",
        f"{sum(len(text.encode()) for text in texts) / tokens:.3f}",
    )
    table.add_row("given back exactly", f"{all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)}")
    table.add_row("fingerprint", tokenizer.fingerprint)
    plain_console().print(table)
    return 0
