"""What an evaluation has found: row by row in a file that grows, and in sum by task, in one that can be compared."""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import whole_file
from jaxllm.config import UserError
from jaxllm.evaluation.answers import Job, Result, Way
from jaxllm.evaluation.metrics import Mean

Tasks = dict[str, dict[str, Mean]]
"""The means of each task by metric."""

REMEDY = "name another --out, or remove it"
FREE = frozenset({"metrics", "tasks", "batch", "step", "ema", "dtype"})
"""Options of an evaluation that results may differ in and still be alike."""


class Kept:
    """The results of jobs so far, a context. In a file each is a line, after a first one that says of what they are."""

    def __init__(self, jobs: Iterable[Job], path: Path | None, key: str):
        """
        Args:
            jobs: all that are to be done.
            path: of the file, which is gone on with if it is there; none keeps the results here alone.
            key: a hash of all of which the results follow.

        Raises:
            UserError: the file cannot be read or written, or is of another evaluation.
        """
        self.path = path
        self.jobs = {(job.number, job.way): job for job in jobs}
        self.results: dict[tuple[int, Way], Result] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(path, key) if path.exists() else 0
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by `__exit__`
            self._file.truncate(whole)  # a line that an earlier process has not written to its end
            if not whole:
                self._put({"evaluation": key})
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror}") from None

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was told of by `add`
                self._file.close()

    def missing(self, way: Way) -> list[Job]:
        """Jobs of that way that have no result."""
        return [job for at, job in self.jobs.items() if job.way == way and at not in self.results]

    def add(self, results: Sequence[Result]) -> None:
        """Keeps results, and their lines are written when this returns.

        Raises:
            OSError: they could not be.
        """
        for result in results:
            at = result.number, result.way
            self.results[at] = result
            row = self.jobs[at].row
            self._put({**result._asdict(), "row": row.name, "task": row.task, "references": row.references})
        if self._file is not None:
            self._file.flush()

    def tasks(self) -> Tasks:
        """The means by task and metric, in the order of the rows, once no job is missing."""
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for at, job in self.jobs.items():
            for metric, value in self.results[at].metrics.items():
                values[job.row.task][metric].append(value)
        return {task: {metric: Mean.of(of) for metric, of in own.items()} for task, own in values.items()}

    def _put(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _read(self, path: Path, key: str) -> int:
        """Takes the results that are there; how many bytes of the file are whole lines."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            head, *lines = [json.loads(line) for line in content[:whole].split(b"\n")[:-1]] or [{"evaluation": key}]
            of = head["evaluation"]
            results = [Result(*(line[field] for field in Result._fields)) for line in lines]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"'{path}' is not what an evaluation has written: {REMEDY}") from None
        if of != key:
            raise UserError(f"'{path}' is of another model, other options or other rows: {REMEDY}")
        self.results = {(result.number, result.way): result for result in results}
        return whole


def rows_path(out: Path) -> Path:
    """Where the rows of an evaluation are kept, whose sums are in `out`."""
    return out.with_name(f"{out.name.removesuffix('.json')}.rows.jsonl")


def over_tasks(tasks: Tasks) -> dict[str, Mean]:
    """The mean over the tasks that have a metric, which count alike."""
    metrics = dict.fromkeys(metric for own in tasks.values() for metric in own)
    return {metric: Mean.over([own[metric] for own in tasks.values() if metric in own]) for metric in metrics}


def save(out: Path, about: Mapping[str, Any], tasks: Tasks, groups: Tasks | None = None) -> None:
    """Writes the sums as JSON, whole or not at all.

    Args:
        out: the file.
        about: what else is to be known of the evaluation.
        tasks: the means.
        groups: of tasks; they have no part in the mean over all.

    Raises:
        UserError: it cannot be written.
    """
    content = {
        **about,
        "tasks": {task: _plain(own) for task, own in tasks.items()},
        "mean": _plain(over_tasks(tasks)),
        **({"groups": {group: _plain(own) for group, own in groups.items()}} if groups else {}),
    }
    try:
        os.makedirs(out.parent, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{out.parent}': {error.strerror}") from None
    with whole_file(out) as writing:
        writing.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _plain(means: Mapping[str, Mean]) -> dict[str, Any]:
    return {metric: mean._asdict() for metric, mean in means.items()}


def load(path: Path) -> tuple[dict[str, Any], Tasks]:
    """What `save` has written: what is to be known of the evaluation, and the means.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = read_json(path, dict)
    try:
        tasks = {task: {name: Mean(**mean) for name, mean in own.items()} for task, own in content["tasks"].items()}
        options = dict(content.get("options", {}))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"'{path}' is not what `jaxllm eval --out` has written") from None
    about = {key: value for key, value in content.items() if key not in ("tasks", "mean", "groups")}
    return about | {"options": options}, tasks


def unlike(about: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In which of what decides results two evaluations differ, as `name: one, other`; from what `load` gives."""
    one, two = ({**of["options"], "chat": of.get("chat")} for of in (about, other))
    named = [name for name in one if name in two and name not in FREE]
    return [f"{name}: {one[name]}, {two[name]}" for name in named if json.dumps(one[name]) != json.dumps(two[name])]
