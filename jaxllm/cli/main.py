"""The command `jaxllm`: finds the subcommand, and turns what goes wrong into a sentence and an exit status.

Nothing heavy is imported before a subcommand asks for it, so that `jaxllm --help` answers at once.
"""

import difflib
import errno
import os
import sys
from importlib import import_module

from jaxllm import __version__
from jaxllm.cli.termination import Terminated, signals
from jaxllm.common.paths import user_path
from jaxllm.config import UserError

COMMANDS = {
    "train": ("jaxllm.cli.train", "train a recipe, or go on with a run"),
    "generate": ("jaxllm.cli.generate", "continue a prompt with the model of a run"),
    "eval": ("jaxllm.cli.eval", "measure a model by tasks, choices and likelihoods"),
    "embed": ("jaxllm.cli.embed", "embed lines of text"),
    "import": ("jaxllm.cli.import_model", "open a model of Hugging Face or GGUF"),
    "export": ("jaxllm.cli.export_model", "write a model as a Hugging Face folder or a GGUF file"),
    "adapter": ("jaxllm.cli.adapter", "export, import, merge, combine and show adapters"),
    "chat": ("jaxllm.cli.chat", "talk with the model of a run"),
    "data": ("jaxllm.cli.data", "prepare the data of a recipe and measure its loader"),
    "tokenizer": ("jaxllm.cli.tokenizer", "train a tokenizer"),
    "model": ("jaxllm.cli.model", "count a model's parameters, FLOPs and memory"),
    "plan": ("jaxllm.cli.plan", "memory and speed of a recipe on a machine that is not here"),
}
"""Each subcommand: the module whose `run(argv)` it is, and a line of help."""

REFUSED = {
    errno.ENOSPC: "the disk is full; make room or name another folder",
    errno.EDQUOT: "your disk quota is used up; make room or name another folder",
    errno.EROFS: "the file system is read-only; name another folder",
    errno.EACCES: "permission denied; mend the permissions or name another file or folder",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EPERM: "the operation is not permitted; name another file or folder",
}
"""What the system may say to any read or write, and what would do."""

OUT_OF_MEMORY = (
    "the memory is not enough ({}); training needs less of it with train.accumulate, a smaller data.sequence_length or "
    "train.loss_chunk, train.remat = 'full' or more devices, and generation with a smaller --batch"
)
"""What is said when a device or the machine has no room for an array."""


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status.

    2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM, 3 where another process of the same run died or
    failed.
    """
    _open_streams()
    status = 1
    try:
        status = _guarded(sys.argv[1:] if argv is None else argv)
        return status
    finally:
        _release_stdout()
        _leave(status)


def _guarded(argv: list[str]) -> int:
    try:
        with signals():
            status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        path = "" if error.filename is None else f"'{error.filename}': "
        print(f"error: {path}{REFUSED[error.errno]}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:  # jax's own error is a RuntimeError; importing jax here takes seconds
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {OUT_OF_MEMORY.format(str(error).partition(chr(10))[0] or 'MemoryError')}", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"jaxllm {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no command '{name}'; did you mean '{near}'? (jaxllm --help lists all)")
    set_environment()
    return import_module(COMMANDS[name][0]).run(rest)


def _help() -> str:
    lines = [f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxllm COMMAND ...",
            "",
            "Language models from raw text onwards, in JAX.",
            "",
            *lines,
            "",
            "jaxllm COMMAND --help lists what a command takes.",
        ]
    )


def set_environment() -> None:
    """Defaults that jax reads when it is imported; what the user has set stays.

    Compiled programs are kept from run to run in `~/.cache/jaxllm/xla` ($JAXLLM_CACHE moves it), the quick ones
    too: a second start then compiles nothing. jax warns at each program where it cannot write, so a folder that
    cannot be made is not used. The native libraries tell of errors only.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    folder = user_path(os.environ.get("JAXLLM_CACHE", "~/.cache/jaxllm")) / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _open_streams() -> None:
    """Where a process is started with a closed standard output or error, Python has none: it goes nowhere then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  closed with the process


def _release_stdout() -> None:
    """Python flushes the standard output once more at its end: what could not be written is given up here."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(status: int) -> None:
    """Ends a process that is still joined with others, which it left by an error: jax would wait for them."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        os._exit(status)
