"""Checkpoints: written by Orbax in the background, whole or not at all, and checked before they are read.

    checkpoints/300/state/        Orbax's: the state as nested dicts of arrays
    checkpoints/300/info.json     what the loop must know beside the state
    checkpoints/300/hashes.json   a hash of every other file

A checkpoint is written under another name (`300.writing`) and renamed when its hashes are in it, and it is renamed
before it is deleted. So a folder whose name is a number was whole, and a file of it that is not as its hash says was
damaged since. Only this file knows Orbax.

Of several processes each writes and reads the shards of its own devices, in one folder that all share. The first
process does the rest: it makes the folder, hashes, renames, deletes and checks, and the others wait for it.
"""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxllm.common.processes import ALONE, Processes
from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import UserError
from jaxllm.data.cache import file_hashes
from jaxllm.train.state import State


@dataclass(frozen=True)
class Info:
    """Where a run stands at a checkpoint."""

    step: int
    """Optimizer steps done: the next batch is this one's number."""
    tokens: int
    """Tokens trained on so far."""
    corpus: str
    """The key of the corpus."""
    tokenizer: str
    """The tokenizer's fingerprint."""
    held_out_loss: float | None = None
    """Of the capped held-out set at this step, where it was measured; the lowest one is the best checkpoint's."""

    def check_tokenizer(self, fingerprint: str, path: Path) -> None:
        """
        Raises:
            UserError: the tokenizer at `path`, which has that fingerprint, is not the run's.
        """
        if self.tokenizer != fingerprint:
            raise UserError(f"tokenizer '{path}' is not the one that this run was trained with: put that one back")


class Checkpoints:
    """The checkpoints of one run folder, a context: the latest `keep` and the best by held-out loss."""

    def __init__(self, run_folder: Path, keep: int = 1, processes: Processes = ALONE):
        _quiet()
        self.folder = run_folder.absolute() / "checkpoints"
        self.keep, self.processes = keep, processes
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._unfinished: tuple[int, Future[None]] | None = None

    def agreed_steps(self) -> list[int]:
        """`steps` as the first process sees it; asked by all at the same place."""
        return self.processes.agree("steps", self.steps() if self.processes.is_first else None)

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def save(self, state: State | Tree, info: Info) -> None:
        """Starts to write `state`, or a part of one; returns when the host has a copy, so that a step may consume it.

        Raises:
            UserError: this checkpoint, or the one before it, cannot be written. Nothing of it is left.
        """
        self.wait()
        writing = self.folder / f"{info.step}.writing"
        try:
            if self.processes.is_first:
                writing.mkdir(parents=True)
            self.processes.exchange("checkpoint begun", None)
            self._orbax.save(writing / "state", args=ocp.args.PyTreeSave(nest(flatten(state))))
        except Exception as error:
            raise self._not_written(info.step, error) from error
        self._unfinished = info.step, self._finisher.submit(self._finish, writing, info)

    def check(self) -> None:
        """Raises, as `save` does, if the checkpoint that was being written could not be."""
        if self._unfinished is not None and self._unfinished[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written. Raises as `save` does."""
        if self._unfinished is None:
            return
        (step, future), self._unfinished = self._unfinished, None
        try:
            future.result()
        except Exception as error:  # Orbax and tensorstore raise OSError, ValueError, RuntimeError, ...
            raise self._not_written(step, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the writing threads to end, whatever became of their work."""
        self._finisher.shutdown()
        with contextlib.suppress(Exception):  # a failure that `wait` told of, once more
            self._orbax.close()

    def restore(self, abstract: State, step: int) -> tuple[State, Info]:
        """The state at `step`, placed as `abstract` says, on whatever mesh that is.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or it is of another model or optimizer.
        """
        info = self.info(step) if self.processes.is_first else None
        info = Info(**self.processes.agree("checkpoint read", info and asdict(info)))
        wanted = flatten(abstract)
        arrays = self._read(step, wanted)
        if extra := self._stored(step).keys() - wanted.keys():
            raise self._does_not_fit(step, f"the checkpoint also holds '{min(extra)}'")
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[path] for path in wanted]), info

    def restore_params(
        self, step: int, ema: bool, places: Mapping[str, jax.sharding.Sharding] = MappingProxyType({})
    ) -> tuple[Tree, Info]:
        """The parameters alone; their moving average if `ema` and the run keeps one.

        Each lies where `places` says for its path, or on the first device.
        """
        info = self.info(step)
        name, wanted = self._parameters(step, ema, places)
        return nest(self._read(step, wanted))[name], info

    def each_param(
        self, step: int, ema: bool, places: Mapping[str, jax.sharding.Sharding]
    ) -> Iterator[tuple[str, jax.Array]]:
        """The same one after another, with their paths: none is read before the one before it has been taken."""
        self.info(step)
        for path, leaf in self._parameters(step, ema, places)[1].items():
            yield path.partition("/")[2], self._read(step, {path: leaf})[path]

    def _parameters(
        self, step: int, ema: bool, places: Mapping[str, jax.sharding.Sharding]
    ) -> tuple[str, dict[str, jax.ShapeDtypeStruct]]:
        """What the parameters are called in a checkpoint, and the leaves of that name."""
        first = SingleDeviceSharding(jax.devices()[0])
        stored = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places.get(path.partition("/")[2], first))
            for path, leaf in self._stored(step).items()
        }
        for name in ("ema", "params") if ema else ("params",):
            if wanted := {path: leaf for path, leaf in stored.items() if path.startswith(f"{name}/")}:
                return name, wanted
        raise self._does_not_fit(step, "it holds no parameters")

    def info(self, step: int) -> Info:
        """What was saved beside the state, once every file of the checkpoint is known to be as it was written.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        folder = self.folder / str(step)
        if not folder.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"there is no checkpoint of step {step} in '{self.folder}'; there are: {there}")
        damage = _damage(folder)
        if damage and not folder.is_dir():
            raise self._deleted(step)
        if damage:
            earlier = [s for s in self.steps() if s < step]
            remedy = f"go on from the one before with --step {earlier[-1]}" if earlier else "there is none before it"
            raise UserError(f"checkpoint '{folder}' is damaged: {damage}; {remedy}")
        try:
            return Info(**json.loads((folder / "info.json").read_text()))
        except FileNotFoundError:
            raise self._deleted(step) from None

    def forget_after(self, step: int) -> None:
        """Deletes what is later than `step`, and what an earlier process left unfinished; in the first process."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.isdecimal() and int(path.name) > step:
                    self._delete(int(path.name))
                elif path.suffix in (".writing", ".deleting"):
                    shutil.rmtree(path)

    def _finish(self, writing: Path, info: Info) -> None:
        try:
            self._orbax.wait_until_finished()
            if self.processes.is_first:
                self._complete(writing, info)
        except Exception as error:
            if self.processes.count > 1:  # the others wait for this one in Orbax, which takes minutes to give up
                self.processes.end(self._not_written(info.step, error))
            raise
        finally:
            if self.processes.is_first:
                shutil.rmtree(writing, ignore_errors=True)
        self.processes.exchange("checkpoint written", None)

    def _complete(self, writing: Path, info: Info) -> None:
        """Makes a checkpoint of what all processes have written, and deletes those that are too many."""
        (writing / "info.json").write_text(json.dumps(asdict(info)))
        (writing / "hashes.json").write_text(json.dumps(_hashes(writing)))
        os.rename(writing, self.folder / str(info.step))
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best()}
        for step in steps:
            if step not in kept:
                self._delete(step)

    def best(self) -> int | None:
        """The step of the finished checkpoint with the lowest held-out loss, if one has any."""
        losses = {}
        for step in self.steps():
            # A damaged checkpoint is named when somebody asks for it, not here.
            with contextlib.suppress(OSError, ValueError, TypeError):
                info = Info(**json.loads((self.folder / str(step) / "info.json").read_bytes()))
                if info.held_out_loss is not None:
                    losses[step] = info.held_out_loss
        return min(losses, key=losses.__getitem__, default=None)

    def _delete(self, step: int) -> None:
        deleting = self.folder / f"{step}.deleting"
        os.rename(self.folder / str(step), deleting)
        shutil.rmtree(deleting)

    def _stored(self, step: int) -> dict[str, Any]:
        return flatten(self._orbax.metadata(self.folder / str(step) / "state").item_metadata.tree)

    def _read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        stored = self._stored(step)
        for path, leaf in wanted.items():
            if path not in stored:
                raise self._does_not_fit(step, f"the checkpoint has no '{path}'")
            there, here = ((tuple(x.shape), x.dtype) for x in (stored[path], leaf))
            if there != here:
                raise self._does_not_fit(step, f"'{path}' is {_text(there)} there and {_text(here)} here")
        tree = nest(dict(wanted))
        arguments = ocp.args.PyTreeRestore(
            item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        return flatten(self._orbax.restore(self.folder / str(step) / "state", args=arguments))

    def _deleted(self, step: int) -> UserError:
        folder = self.folder / str(step)
        return UserError(f"checkpoint '{folder}' was deleted while it was read: the run goes on and keeps later ones")

    def _does_not_fit(self, step: int, how: str) -> UserError:
        return UserError(f"checkpoint '{self.folder / str(step)}' is not of this model and optimizer: {how}")

    def _not_written(self, step: int, error: Exception) -> UserError:
        if self.processes.count == 1:  # under others, who still write in it, it is left to the next start
            shutil.rmtree(self.folder / f"{step}.writing", ignore_errors=True)
        steps = self.steps() if self.folder.is_dir() else []
        last = f"the last whole one is of step {steps[-1]}" if steps else "there is none yet"
        return UserError(
            f"cannot write the checkpoint of step {step} in '{self.folder}': {_reason(error)}; {last}; make room or "
            "mend the folder, and run the same command again"
        )


@functools.cache
def _quiet() -> None:
    """Silences what is printed beside the exception when a checkpoint cannot be written.

    Orbax logs it through absl. Then it closes its event loop at the first failed write, so that each of the others
    is one more traceback, from asyncio or from the callback that finds the loop closed.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def unless_closed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = unless_closed


def _reason(error: Exception) -> str:
    """`No space left on device`, out of an OSError or out of what tensorstore wraps around one."""
    inner = re.search(r"([^:]+) \[os_error", str(error))
    return (error.strerror if isinstance(error, OSError) else inner and inner[1].strip()) or str(error)


def _hashes(folder: Path) -> dict[str, str]:
    """A hash of each file of a checkpoint but that of the hashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "hashes.json")
    return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, file_hashes(paths), strict=True)}


def _damage(folder: Path) -> str | None:
    """What is wrong with a finished checkpoint, or nothing."""
    try:
        wanted = dict(json.loads((folder / "hashes.json").read_bytes()))
        found = _hashes(folder)
    except FileNotFoundError:
        return "'hashes.json' is missing"
    except OSError as error:
        return f"'{Path(error.filename or folder).name}' cannot be read ({error.strerror})"
    except (ValueError, TypeError):
        return "'hashes.json' cannot be read"
    for name, digest in wanted.items():
        if name not in found:
            return f"'{name}' is missing"
        if found[name] != digest:
            return f"the content of '{name}' has changed"
    return None


def _text(kind: tuple[tuple[int, ...], Any]) -> str:
    return f"{kind[1]}{list(kind[0])}"
