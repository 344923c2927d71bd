"""`jaxllm data`: prepares the corpus of a recipe and measures its loader, or shows its rows."""

import difflib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from jaxllm.common.console import plain_console, wide_console
from jaxllm.config import RunConfig, UserError

if TYPE_CHECKING:
    from jaxllm.data.loader import Loader
    from jaxllm.data.shown import Run


@dataclass(frozen=True, kw_only=True)
class Show:
    """What is shown of the rows."""

    rows: int = 3
    """How many."""
    task: str | None = None
    """Of this task alone."""
    split: Literal["train", "held_out"] = "train"
    """What is trained on, in that order, or what is held out."""


def run(argv: list[str]) -> int:
    """Tokenises and plans the data of the recipe in `argv` (cached), and prints what came of it.

    After the word `show` it prints rows as the model reads them.

    Raises:
        UserError: a recipe, source, tokenizer, task or cache that will not do.
    """
    from jaxllm.cli.recipe import load_run, load_run_with

    if argv[:1] == ["show"]:
        config, options = load_run_with(argv[1:], "jaxllm data show", Show())
        loader = _loader(config)
        _show(loader, options)
        for lost in loader.losses():
            print(f"[{lost}]", file=sys.stderr)
    else:
        config = load_run(argv, "jaxllm data")
        _describe(config.name, _loader(config))
    return 0


def _loader(config: RunConfig) -> "Loader":
    from jaxllm.data.corpus import prepare_corpus
    from jaxllm.train.loop import open_loader
    from jaxllm.train.params import with_base_tokenizer

    config = with_base_tokenizer(config)
    return open_loader(config, prepare_corpus(config.data, config.tokenizer, progress=True))


def _describe(name: str, loader: "Loader") -> None:
    from jaxllm.data.frequencies import unigram_loss
    from jaxllm.data.loader import loader_speed

    corpus = loader.corpus
    report = corpus.report
    table = Table("", "", title=f"Data of '{name}'", show_header=False)
    unigrams = unigram_loss(loader)
    for what, value in (
        ("documents", f"{report.documents:,}, of which {report.held_out:,} held out"),
        ("dropped", f"{report.duplicates:,} duplicates, {report.empty:,} empty"),
        *(("", lost) for lost in loader.losses()),
        ("text", f"{report.bytes:,} bytes, of which {corpus.held_out_bytes:,} held out"),
        ("tokens", f"{report.tokens:,}"),
        ("vocabulary", f"{corpus.tokenizer.vocab_size:,} pieces, {report.bytes_per_token:.3f} bytes a token"),
        ("rows", f"{sum(map(len, loader.plans)):,} of {loader.sequence_length:,}"),
        ("packing efficiency", f"{loader.packing_efficiency:.2%}"),
        ("unigrams", "nothing is held out" if unigrams is None else f"loss {unigrams:.4f}, by frequencies alone"),
        ("loader alone", f"{loader_speed(loader):,.0f} tokens/s"),
        ("tokenizer", str(corpus.tokenizer_path)),
        *([] if corpus.template is None else [("chat template", corpus.template.name)]),
    ):
        table.add_row(what, value)
    console = wide_console()
    console.print(table)
    if len(corpus.tasks) > 1 or corpus.template is not None:
        console.print(_tasks(loader))
    for bad in report.bad.first:
        console.print(f"left out: {bad}", highlight=False, soft_wrap=True)


def _tasks(loader: "Loader") -> Table:
    corpus = loader.corpus
    table = Table(title="Tasks")
    table.add_column("task", overflow="fold")
    for column in ("examples", "held out", "tokens", "trained", "share", "of trained"):
        table.add_column(column, justify="right")
    of_tasks = (corpus.train, corpus.validation, loader.shares, loader.trained_shares)
    for task, train, held_out, share, trained in zip(corpus.tasks, *of_tasks, strict=True):
        tokens = train.span.stop - train.span.start
        counts = (len(train), len(held_out), tokens, train.trained_tokens)
        table.add_row(task.name, *(f"{count:,}" for count in counts), f"{share:.2%}", f"{trained:.2%}")
    table.caption = "tokens are of the training examples; shares are of examples (of a text rows) and of trained tokens"
    return table


def _show(loader: "Loader", options: Show) -> None:
    from jaxllm.data.shown import bracketed, shown

    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: must be at least 1")
    task = None if options.task is None else _task(loader, options.task)
    console = plain_console()
    rows = loader.first_rows(options.rows, options.split == "held_out", task)
    if not rows:
        of_task = "" if options.task is None else f" of the task '{options.task}'"
        raise UserError(f"--split {options.split}: there is no such row{of_task}")
    colours = console.is_terminal and not console.no_color

    def write(parts: "list[Run]") -> None:
        text = Text()
        for part in parts if colours else ():
            text.append(part.text, " ".join(["bold green"] * part.trained + ["reverse"] * part.special))
        console.print(text if colours else Text(bracketed(parts)), soft_wrap=True)

    for number, row in enumerate(rows, 1):
        name = f", task '{loader.corpus.tasks[row.task].name}'" if len(loader.corpus.tasks) > 1 else ""
        console.rule(Text(f"row {number}{name}"), align="left")
        for piece in shown(loader, row):
            console.print(Text(f"-- {piece.name}, {piece.place}", "dim"), soft_wrap=True)
            if piece.reads:
                write(piece.reads)
                console.print(Text("-- and writes", "dim"))
            write(piece.text)


def _task(loader: "Loader", name: str) -> int:
    names = [task.name for task in loader.corpus.tasks]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise UserError(f"--task {name}: there is no such task; the nearest are {', '.join(near)}")
    return names.index(name)
