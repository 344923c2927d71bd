"""`jaxllm eval`: answers, choices and likelihoods of a model, measured by task and held beside other results."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxllm import __version__
from jaxllm.cli.progress import Progress
from jaxllm.cli.termination import Terminated
from jaxllm.common.paths import user_path
from jaxllm.config import UserError

if TYPE_CHECKING:
    from jaxllm.evaluation.model import Model
    from jaxllm.evaluation.prompts import Prompts
    from jaxllm.evaluation.results import Kept, Tasks
    from jaxllm.evaluation.rows import Row

OF = {
    **dict.fromkeys(("metrics", "max_new_tokens", "stop", "tasks"), ("FILE", "--held-out")),
    **dict.fromkeys(("chat", "system", "few_shot", "limit", "seed", "batch"), ("FILE", "--held-out", "--harness")),
    **dict.fromkeys(("field", "window", "stride"), ("--text",)),
    "harness_path": ("--harness",),
}
"""Options that have a meaning in some of the ways of evaluation only."""

Metric = Literal["exact", "f1", "rougeL", "number", "acc", "acc_norm", "acc_bytes", "acc_pmi"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Evaluate a model: on rows of files, on what a recipe holds out (`--held-out`), by the likelihood of a text
    (`--text`), or on tasks of lm-eval (`--harness`).

    A row of JSON lines or Parquet has a `prompt`, a text or messages, and a `completion`, `answer` or `references`;
    with `choices` the likeliest is chosen. Rows with the same `task` are measured together.
    """

    model: tyro.conf.Positional[str]
    """The folder of a run, or a model folder."""
    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Rows: .jsonl, .jsonl.gz or .parquet, folders or globs of such."""
    held_out: str | None = None
    """A recipe or a run: its held-out conversations are the rows, and what the assistant says last is right."""
    metrics: tuple[Metric, ...] = ()
    """exact, f1 (both as SQuAD), rougeL and number (the last one) of texts that the model writes; acc, acc_norm (by
    character), acc_bytes and acc_pmi (by what the question adds) of choices. None means acc and acc_norm for rows with
    choices, and exact, f1 and rougeL for others."""
    chat: bool | None = None
    """Ask through the model's chat template; none does so where it has one."""
    system: str | None = None
    """What the model is told before all else."""
    few_shot: int | None = None
    """Solved examples before each question, other rows of its task; none means 0, or what a task of lm-eval says."""
    max_new_tokens: int = 256
    """Tokens of each answer, at most."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An answer ends before this string; with examples in plain text before a blank line, where none is given."""
    tasks: tuple[str, ...] = ()
    """Evaluate these only."""
    limit: int | None = None
    """The first rows of each task only."""
    seed: int = 0
    """Decides which rows are examples."""
    batch: int = 16
    """Answers that are written at once. In float32, what they are does not depend on it."""
    text: str | None = None
    """Loss, perplexity and bits a byte of a plain file, or of the rows of JSON lines or Parquet."""
    field: str = "text"
    """The field of the text."""
    window: int | None = None
    """Tokens that are read at once; none means the model's positions, but 2,048 at most."""
    stride: int | None = None
    """Tokens from a window to the next, which predicts only what the one before has not; none lets none overlap."""
    harness: str | None = None
    """Tasks of lm-eval, parted by commas (pip install 'jaxllm[eval]')."""
    harness_path: str | None = None
    """A folder of YAML files with more of its tasks."""
    out: str | None = None
    """A file .json for the results; beside it the rows are kept as they come, so that the same command goes on."""
    compare: tuple[str, ...] = ()
    """Results of `--out` that are shown beside, with the differences to the first of them; what fell most is first."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the parameters where the run keeps one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products; auto is float32 on CPU and bfloat16 elsewhere."""


def run(argv: list[str]) -> int:
    """Prints a table of the tasks, and on the standard error how long they took.

    Raises:
        UserError: a model, file or setting that will not do.
    """
    command = tyro.cli(Command, args=argv, prog="jaxllm eval")
    _check(command)

    from jaxllm.evaluation.model import open_model
    from jaxllm.evaluation.report import show_comparison, show_tasks
    from jaxllm.evaluation.results import load, save, unlike

    before = {name: load(user_path(name)) for name in command.compare}
    dtype = None if command.dtype == "auto" else command.dtype
    began, groups = time.perf_counter(), None
    if command.files or command.held_out is not None:
        about, tasks = _of_rows(command, dtype)
    else:
        chat = False if command.text is not None else command.chat
        model = open_model(command.model, command.step, ema=command.ema, chat=chat, dtype=dtype)
        about = {"model": model.name, "fingerprint": model.fingerprint, "chat": model.template is not None}
        if command.text is not None:
            tasks = _of_text(command, model)
        else:
            tasks, groups = _of_harness(command, model)
    options = {name: value for name, value in vars(command).items() if name not in ("model", "out", "compare")}
    about = {"jaxllm": __version__, **about, "options": options}
    if command.out is not None:
        save(user_path(command.out), about, tasks, groups)
    show_tasks(tasks, counted="rows" if command.text is None else "tokens", groups=groups)
    if before:
        show_comparison(tasks, {name: of for name, (_, of) in before.items()})
    for name, (earlier, _) in before.items():
        if differing := unlike(earlier, about):
            print(f"[not alike are '{name}' and this: {'; '.join(differing)}]", file=sys.stderr)
    print(f"[{time.perf_counter() - began:.1f} s, loading and compiling included]", file=sys.stderr)
    return 0


def _check(command: Command) -> None:
    ways = {"FILE": command.files, "--held-out": command.held_out, "--text": command.text, "--harness": command.harness}
    given = [name for name, value in ways.items() if value not in ((), None)]
    if len(given) != 1:
        raise UserError(f"give one of FILE..., --held-out, --text and --harness; got {' and '.join(given) or 'none'}")
    for name, of in OF.items():
        if given[0] not in of and getattr(command, name) != getattr(Command, name):
            raise UserError(f"--{name.replace('_', '-')}: has no meaning with {given[0]}, but with {' or '.join(of)}")
    if command.harness is not None and not command.harness.strip(","):
        raise UserError("--harness: name at least one task")
    for name, least in {"few_shot": 0, "max_new_tokens": 1, "limit": 1, "batch": 1}.items():
        value = getattr(command, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
    if "" in command.stop:
        raise UserError("--stop: a stop string has at least one character")
    if command.out is not None and not command.out.endswith(".json"):
        raise UserError(f"--out {command.out}: expected a name that ends in .json")


def _of_rows(command: Command, dtype: str | None) -> tuple[dict[str, Any], "Tasks"]:
    from dataclasses import astuple

    from jaxllm.data.cache import key_of
    from jaxllm.evaluation.answers import jobs_of
    from jaxllm.evaluation.model import open_model
    from jaxllm.evaluation.prompts import BETWEEN, Prompts
    from jaxllm.evaluation.results import Kept, rows_path
    from jaxllm.evaluation.rows import Examples, chosen_rows

    there = _rows(command)
    rows = chosen_rows(there, command.tasks, command.limit)
    jobs = jobs_of(rows, command.metrics)
    examples = Examples(there, rows, command.few_shot or 0, command.seed)
    model = open_model(command.model, command.step, ema=command.ema, chat=command.chat, dtype=dtype)
    prompts = Prompts(model, command.system, examples)
    stop = command.stop or ((BETWEEN,) if command.few_shot and model.template is None else ())
    asked = [command.metrics, command.system, command.few_shot, command.seed, command.max_new_tokens, stop]
    read = [astuple(row) for row in (there if command.few_shot else rows)]
    key = key_of([model.fingerprint, asked, read, command.tasks, command.limit])
    with Kept(jobs, None if command.out is None else rows_path(user_path(command.out)), key) as kept:
        try:
            _answer(command, model, prompts, kept, stop)
        except (KeyboardInterrupt, Terminated):
            if kept.path is not None:
                of = f"{len(kept.results):,} of {len(jobs):,} answers"
                print(f"\n[{of} are in '{kept.path}'; the same command goes on]", file=sys.stderr)
            raise
        tasks = kept.tasks()
    if prompts.cut:
        print(
            f"[{prompts.cut:,} prompts lost their beginning: the model reads {model.reads:,} tokens]", file=sys.stderr
        )
    return {"model": model.name, "fingerprint": model.fingerprint, "chat": model.template is not None}, tasks


def _rows(command: Command) -> "list[Row]":
    if command.held_out is None:
        from jaxllm.evaluation.rows import read_rows

        return read_rows(command.files)
    from jaxllm.cli.recipe import load_run
    from jaxllm.evaluation.held_out import accepted, held_out_rows
    from jaxllm.evaluation.model import open_text

    data = load_run([command.held_out], "jaxllm eval --held-out").data
    rows = held_out_rows(data, progress=True)
    template = open_text(user_path(command.model), command.chat)[1] if data.skip_bad else None
    if template is None:
        return rows
    left = accepted(rows, template)
    if not left:
        raise UserError(f"--held-out {command.held_out}: the model's chat template refuses all rows that it holds out")
    if refused := len(rows) - len(left):
        print(f"[{refused:,} held-out rows are left out: the model's chat template refuses them]", file=sys.stderr)
    return left


def _answer(command: Command, model: "Model", prompts: "Prompts", kept: "Kept", stop: Sequence[str]) -> None:
    """Has all that is missing answered, and tells how far it is."""
    import jax

    from jaxllm.evaluation.answers import choose, write

    if kept.results:
        of = f"{len(kept.results):,} of {len(kept.jobs):,} answers"
        print(f"[{of} are in '{kept.path}' already]", file=sys.stderr)
    to_choose, to_write = kept.missing("choice"), kept.missing("text")
    chosen = choose(model, prompts, to_choose, jax.default_backend())
    written = write(model, prompts, to_write, command.max_new_tokens, stop, command.batch)
    for what, jobs, answers in (("choosing", to_choose, chosen), ("writing", to_write, written)):
        told, began, done, tokens = Progress(what, "rows", len(jobs)), time.perf_counter(), 0, 0
        for results in answers:
            kept.add(results)
            done, tokens = done + len(results), tokens + sum(result.tokens for result in results)
            told(done)
        if done:
            seconds = time.perf_counter() - began
            rates = f"{done / seconds:.2f} rows/s, {tokens / seconds:,.1f} tokens/s"
            work = f"{done:,} rows, {tokens:,} tokens in {seconds:.1f} s"
            print(f"[{what}: {work}, compiling included; {rates}]", file=sys.stderr)


def _of_text(command: Command, model: "Model") -> "Tasks":
    from jaxllm.evaluation.metrics import Mean
    from jaxllm.evaluation.perplexity import perplexity, read_texts

    assert command.text is not None
    texts = read_texts(command.text, command.field)
    found = perplexity(
        model, texts, command.window, command.stride, lambda tokens: Progress("reading", "tokens", tokens)
    )
    values = {"loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    means = {name: Mean(value, None, found.tokens) for name, value in values.items() if value is not None}
    return {command.text: means}


def _of_harness(command: Command, model: "Model") -> "tuple[Tasks, Tasks]":
    from jaxllm.evaluation.harness import evaluate_tasks

    assert command.harness is not None
    return evaluate_tasks(
        model,
        [task for task in command.harness.split(",") if task],
        command.harness_path,
        limit=command.limit,
        few_shot=command.few_shot,
        system=command.system,
        batch=command.batch,
        seed=command.seed,
        progress=Progress,
    )
