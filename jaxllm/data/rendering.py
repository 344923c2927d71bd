"""The processes in which templates are rendered (`chat_renderer.py`), as many as threads want at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import UserError

SECONDS = 5
"""Processor time of one rendering, at most; usually it takes a thousandth of a second."""

MEMORY = 2**30
"""Bytes of a process that renders, at most."""


class Renderers:
    """Renders templates. Threads may share one; a process that was forked off may not."""

    def __init__(self) -> None:
        try:
            import jinja2  # noqa: F401  used by the processes
        except ImportError:
            raise UserError("templates need jinja2: pip install 'jaxllm[interop]'") from None
        self._idle: list[_Renderer] = []
        self._room = threading.BoundedSemaphore(os.cpu_count() or 1)

    def ask(
        self, source: str, variables: Sequence[Mapping[str, Any] | None], strict: bool = False
    ) -> list[dict[str, Any]]:
        """What the template gives for each of `variables`: `text` and `spans`, or `error` and `line`.

        Without variables the `names` of those that it may read. If `strict`, a name that is not there is an error.

        Raises:
            UserError: variables that JSON cannot hold.
        """
        try:
            requests = [json.dumps(each) for each in variables]
        except (TypeError, ValueError) as error:
            raise UserError(f"a conversation is made of what JSON can hold: {error}") from None
        answers: list[dict[str, Any]] = []
        with self._one() as renderer:
            while len(answers) < len(requests):  # each time that a process dies over one of them, it is told and passed
                answers += renderer.ask(json.dumps(source), json.dumps(strict), requests[len(answers) :])
        return answers

    @contextlib.contextmanager
    def _one(self) -> Iterator["_Renderer"]:
        with self._room:
            try:
                renderer = self._idle.pop()
            except IndexError:
                renderer = _Renderer()
            try:
                yield renderer
            finally:
                self._idle.append(renderer)


class _Renderer:
    """One process; started when it is needed, and again once it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, source: str, strict: str, requests: Sequence[str]) -> list[dict[str, Any]]:
        """The answers to the requests; where the process dies over one, that is the last."""
        line = f'{{"source": {source}, "strict": {strict}, "all": [{", ".join(requests)}]}}\n'
        process = self.process = self.process or self._started()
        answers: list[bytes] = []
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line.encode())
            process.stdin.flush()
            while len(answers) < len(requests) and (answer := process.stdout.readline()).endswith(b"\n"):
                answers.append(answer)
        except BrokenPipeError:
            pass
        finally:  # what was not read to its end must not be the answer to the next
            if len(answers) < len(requests):
                self.process = None
                status = _ended(process)
        found = [json.loads(answer) for answer in answers]
        if len(found) < len(requests):
            reason = f"its process has died (status {status})"
            if status == -signal.SIGXCPU:
                reason = f"it was stopped after {SECONDS} s of work: does it have an end?"
            found.append({"error": reason, "line": None})
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # -P: the files beside the program are no modules of its
            [sys.executable, "-P", str(Path(__file__).with_name("chat_renderer.py")), str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for this process
        )
        weakref.finalize(self, _ended, process)
        return process


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Ends the process, if it has not ended by itself, and gives its status."""
    with contextlib.suppress(BrokenPipeError), process:  # what it was still to read goes nowhere
        process.kill()
    return process.returncode
