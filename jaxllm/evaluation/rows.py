"""Rows of an evaluation: questions of tasks, with what is right, out of files of JSON lines or Parquet."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.config import UserError
from jaxllm.data.document import Record, Records, checked_text
from jaxllm.data.files import find_files
from jaxllm.data.records import JsonLines, ParquetFiles

PROMPTS = ("prompt", "question", "messages")
ANSWERS = ("references", "completion", "answer")
"""Fields in which each is looked for; the first that is there counts."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A question and what is right."""

    name: str
    """The file, without the folders above it, and the line, from 1, or the row, from 0."""
    task: str
    prompt: str | tuple[Message, ...]
    """A text, or the turns of a conversation that the model is to go on with."""
    references: tuple[str, ...]
    """Answers that are right; of a row with choices the one that is."""
    choices: tuple[str, ...] = ()
    answer: int = 0
    """Which choice is right."""


def read_rows(paths: Sequence[str]) -> list[Row]:
    """The rows of files, in order; those without a `task` are of one that is called as their file.

    A row has a `prompt` (or `question`), a text or messages, and `references`, a `completion` or an `answer`: a text,
    or several. With `choices`, a list of texts, the answer is one of them or its place from 0. Or it has `messages`
    alone, whose last one is the assistant's.

    Raises:
        UserError: a file cannot be read, or a row is of another shape; it is named.
    """
    rows = []
    for path in paths:
        kind = "parquet" if path.lower().endswith(".parquet") else "jsonl"
        files = find_files(kind, path)
        records: Records = ParquetFiles(files) if kind == "parquet" else JsonLines(files)
        rows += [_row(records[i]) for i in range(len(records))]
    if not rows:
        raise UserError(f"there is no row in {', '.join(paths)}")
    return rows


def chosen_rows(rows: Sequence[Row], tasks: Sequence[str], limit: int | None) -> list[Row]:
    """The first `limit` rows of each of the tasks; none of either means all.

    Raises:
        UserError: there is no such task.
    """
    there = dict.fromkeys(row.task for row in rows)
    if missing := [task for task in tasks if task not in there]:
        raise UserError(f"--tasks {missing[0]}: there is no such task; there are {', '.join(there)}")
    counts: dict[str, int] = {}
    chosen = []
    for row in rows:
        counts[row.task] = counts.get(row.task, 0) + 1
        if (not tasks or row.task in tasks) and (limit is None or counts[row.task] <= limit):
            chosen.append(row)
    return chosen


class Examples:
    """Solved examples that are put before a question: other rows of its task."""

    def __init__(self, rows: Sequence[Row], asked: Sequence[Row], count: int, seed: int):
        """
        Args:
            rows: all that there are.
            asked: those that are questions.
            count: before each question.
            seed: decides, with the name of the question, which.

        Raises:
            UserError: a task has too few rows.
        """
        self._of_task: dict[str, list[Row]] = {}
        for row in rows:
            self._of_task.setdefault(row.task, []).append(row)
        self._count, self._seed = count, seed
        for task in dict.fromkeys(row.task for row in asked):
            if (there := len(self._of_task[task])) <= count:
                raise UserError(f"--few-shot {count}: task '{task}' has {there} rows, of which one is the question")

    def __call__(self, row: Row) -> list[Row]:
        """Those before this question."""
        drawn = random.Random(f"{self._seed} {row.name}").sample(self._of_task[row.task], self._count + 1)
        return [example for example in drawn if example.name != row.name][: self._count]


def _row(read: Record) -> Row:
    name, where, record = read
    file = Path(name.rpartition(":")[0]).name
    task = file.removesuffix(".gz").rpartition(".")[0]
    asked, answered = (
        next((name for name in names if record.get(name) is not None), None) for names in (PROMPTS, ANSWERS)
    )
    if asked is None:
        raise UserError(f"{where}: no 'prompt' (nor {_or(PROMPTS[1:])}); it has {', '.join(record)}")
    if record.get("tools") not in (None, [], "", "[]", "null"):
        raise UserError(f"{where}: has 'tools', which are not shown to the model; leave the row out")
    prompt = record[asked]
    if isinstance(prompt, list):
        prompt = tuple(_message(each, f"{where}, field '{asked}', message {i}") for i, each in enumerate(prompt, 1))
    else:
        prompt = checked_text(prompt, f"{where}, field '{asked}'")
    if asked == "messages" and answered is None:
        if not isinstance(prompt, tuple) or len(prompt) < 2 or prompt[-1]["role"] != "assistant":
            raise UserError(f"{where}: no 'references', and the last of its 'messages' is not the assistant's")
        given, prompt = prompt[-1]["content"], prompt[:-1]
    elif answered is None:
        raise UserError(f"{where}: no {_or(ANSWERS)}; it has {', '.join(record)}")
    else:
        given = record[answered]
    if not prompt:
        raise UserError(f"{where}: an empty '{asked}'")
    task = checked_text(record.get("task") or task, f"{where}, field 'task'")
    if record.get("choices") is not None:
        choices = _texts(record["choices"], f"{where}, field 'choices'")
        answer = _place(given, choices, f"{where}, field '{answered}'")
        return Row(name, task, prompt, (choices[answer],), choices, answer)
    references = given if isinstance(given, list) else [given]
    texts = [str(each) if type(each) in (int, float) else each for each in references]
    return Row(name, task, prompt, _texts(texts, f"{where}, field '{answered}'", may_be_empty=True))


def _or(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{where}: expected an object with a 'role', got {message!r:.60}")
    if message.get("tool_calls"):
        raise UserError(f"{where}: has 'tool_calls', and only texts are asked and judged; leave the row out")
    return {"role": message["role"], "content": checked_text(message.get("content"), f"{where}, 'content'")}


def _texts(given: Any, where: str, may_be_empty: bool = False) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f"{where}: expected a list of texts, got {given!r:.60}")
    texts = tuple(checked_text(each, where) for each in given)
    if not all(texts) and not may_be_empty:
        raise UserError(f"{where}: text {texts.index('') + 1} is empty")
    return texts


def _place(given: Any, choices: Sequence[str], where: str) -> int:
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    if type(given) is int and 0 <= given < len(choices):
        return given
    if isinstance(given, str) and given in choices:
        return choices.index(given)
    raise UserError(
        f"{where}: expected one of the choices ({', '.join(choices):.80}) or its place from 0 to {len(choices) - 1}, "
        f"got {given!r:.60}"
    )
