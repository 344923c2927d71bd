"""`jaxllm chat`: a conversation with the model of a run, in the terminal or from a script."""

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxllm.cli.generate import SAMPLING, tell_unfollowed, with_recommended
from jaxllm.common.paths import user_path
from jaxllm.config import UserError
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.recommended import Recommended

if TYPE_CHECKING:
    from jaxllm.generation.chat import Conversation


@dataclass(frozen=True, kw_only=True)
class Command:
    """Talk with the model of a run, one line a turn; /help lists what else a line can say.

    Without a terminal each line of the standard input is a turn.
    """

    run: tyro.conf.Positional[str]
    """The folder of a run, with a chat template in it."""
    message: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Say this and end, in place of reading lines; several are several turns."""
    system: str | None = None
    """What the model is told before all turns."""
    max_new_tokens: int = 1024
    """Tokens of each answer, at most; it also ends where the model's positions do."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = SAMPLING
    """Where the folder has a generation_config.json, what that says comes before these defaults."""
    seed: int = 0
    """Of the first answer; the next ones take the seeds that follow."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the parameters where the run keeps one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products; auto is float32 on CPU and bfloat16 elsewhere. On a CPU bfloat16 takes half the memory;
    with jax 0.12, where it is multiplied in hardware, it is faster too, and with jax 0.10 far slower."""


def run(argv: list[str]) -> int:
    """Prints the answers on the standard output, as they come, and what is to be said beside on the standard error.

    Returns 2 where a message of a script could not be answered.

    Raises:
        UserError: a folder or setting that will not do.
    """
    command, said = with_recommended(Command, argv, "jaxllm chat")
    command.sampling.check()
    if command.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: expected 1 or more, got {command.max_new_tokens}")
    if not 0 <= command.seed < 2**32:
        raise UserError(f"--seed: expected 0 to {2**32 - 1}, got {command.seed}")
    talk = _conversation(command, said)
    if command.message:
        return _script(iter(command.message), lambda text: _say(text, talk))
    if not sys.stdin.isatty():
        return _script(_lines(), lambda line: _take(line, talk))
    return _terminal(talk)


def _conversation(command: Command, said: Recommended) -> "Conversation":
    from jaxllm.data.chat_template import load_chat_template
    from jaxllm.data.chat_tokens import end_of_turn
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.generation.chat import Conversation
    from jaxllm.generation.generate import Generator
    from jaxllm.models.adapters import virtual_tokens
    from jaxllm.models.transformer import dtype_for_use
    from jaxllm.train.params import load_run_params
    from jaxllm.train.run_folder import saved_config, saved_tokenizer

    folder = user_path(command.run)
    saved_config(folder)  # what is no run folder at all is told first
    tokenizer = load_tokenizer(path := saved_tokenizer(folder))
    template = load_chat_template(folder, tokenizer)
    if template is None:
        raise UserError(
            f"'{folder}' has no chat template, neither chat_template.jinja nor one in tokenizer_config.json: its model "
            "was not made for conversations (jaxllm generate continues texts), or the file was not copied"
        )
    dtype = dtype_for_use(None if command.dtype == "auto" else command.dtype)
    config, params, info = load_run_params(folder, command.step, command.ema, dtype)
    info.check_tokenizer(tokenizer.fingerprint, path)
    tell_unfollowed(folder, said)
    ends = said.ends or {tokenizer.eos_id}
    end = end_of_turn(template, tokenizer)
    ends, virtual = ends if end is None else ends | {end}, virtual_tokens(config.tuning)
    generator = Generator(config.model, params, tokenizer, ends=ends, virtual=virtual, dtype=dtype)
    return Conversation(
        generator,
        template,
        system=command.system,
        max_new_tokens=command.max_new_tokens,
        sampling=command.sampling,
        seed=command.seed,
    )


def _terminal(talk: "Conversation") -> int:
    """Reads lines until the end of the input (Ctrl-D) or `/quit`; Ctrl-C there ends the command."""
    with contextlib.suppress(ImportError):  # not on every system
        import readline  # noqa: F401  lets `input` edit lines
    _note("/help lists what else a line can say; Ctrl-C stops an answer, Ctrl-D ends")
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            if not _take(input(prompt), talk):
                return 0
        except EOFError:
            print()
            return 0
        except UnicodeDecodeError as error:
            _complain(f"the line is not UTF-8 text: {error}")
        except UserError as error:
            _complain(error)
        except _Stopped:
            _note("stopped")


def _script(lines: Iterator[str], take: Callable[[str], bool]) -> int:
    """Takes lines until one of them, or their end, ends it; Ctrl-C ends it too."""
    status = 0
    for line in lines:
        try:
            if not take(line):
                break
        except UserError as error:
            _complain(error)
            status = 2
        except _Stopped:
            raise KeyboardInterrupt from None
    return status


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the standard input is not UTF-8 text: {error}") from None


class _Stopped(Exception):
    """Ctrl-C came during an answer, which was kept as far as it had come."""


def _take(line: str, talk: "Conversation") -> bool:
    """Does what a line says; false if that is to end."""
    if not line.strip():
        return True
    if not line.startswith("/"):
        return _say(line, talk)
    name, _, text = line.partition(" ")
    if name == "/quit":
        return False
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"there is no '{name}'; did you mean '{near}'? (/help lists all; a space first makes it a message)"
        )
    COMMANDS[name][1](talk, text.strip())
    return True


def _say(text: str, talk: "Conversation") -> bool:
    """Prints the answer as it comes."""
    try:
        text.encode()
    except UnicodeError as error:
        raise UserError(f"the message is not UTF-8 text: {error}") from None
    answer = talk.ask(text, lambda piece: print(piece, end="", flush=True))
    print(flush=True)
    if answer.forgotten:
        _note(
            f"the conversation is longer than the model reads: its oldest turns ({talk.forgotten} by now) are left out"
        )
    if answer.finish == "length":
        _note("the answer was cut off: it has as many tokens as --max-new-tokens or the model's positions let it")
    if answer.finish == "interrupted":
        raise _Stopped
    return True


def _system(talk: "Conversation", text: str) -> None:
    talk.system = text or None


def _save(talk: "Conversation", name: str) -> None:
    if not name:
        raise UserError("/save takes the name of a file")
    lines = [json.dumps(message, ensure_ascii=False) + "\n" for message in talk.messages()]
    try:
        with open(user_path(name), "x", encoding="utf-8") as file:
            file.writelines(lines)
    except FileExistsError:
        raise UserError(f"'{name}' is there already; name another file") from None
    except OSError as error:
        raise UserError(f"cannot write '{name}': {error.strerror}") from None
    _note(f"{len(lines)} messages are in '{name}'")


def _help(*_: object) -> None:
    print("\n".join(f"{usage:<14}{what}" for usage, _, what in COMMANDS.values()))


COMMANDS: dict[str, tuple[str, Callable[["Conversation", str], None], str]] = {
    "/system": ("/system TEXT", _system, "tell the model TEXT before all turns; without TEXT, nothing"),
    "/undo": ("/undo", lambda talk, _: talk.undo(), "take the last message and its answer back"),
    "/reset": ("/reset", lambda talk, _: talk.reset(), "begin anew"),
    "/save": ("/save FILE", _save, "write the messages into FILE, one JSON object a line"),
    "/help": ("/help", _help, "list this"),
    "/quit": ("/quit", lambda *_: None, "end, as Ctrl-D does"),
}
"""By the first word of a line: how it is written, what it does, and a line of help."""


def _note(text: str) -> None:
    print(f"[{text}]", file=sys.stderr)


def _complain(error: object) -> None:
    print(f"error: {error}", file=sys.stderr)
