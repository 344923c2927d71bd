"""The folder of a run: its resolved configuration and tokenizer, and who may write in it.

config.json  tokenizer.model (or .json)  chat_template.jinja  metrics.jsonl  events/  checkpoints/  log.txt  loss.png
tasks.jsonl  tasks.png  profile/
"""

import contextlib
import fcntl
import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path
from jaxllm.config import BUILT_IN_TEMPLATES, RunConfig, TokenizerConfig, UserError, differences, from_dict, to_dict

if TYPE_CHECKING:
    from jaxllm.data.chat_template import ChatTemplate

HARMLESS = re.compile(
    r"(name|output|log_every|profile_steps|data\.cache_dir|data\.workers|data\.skip_bad|data\.sources\.\d+\.path):"
    r"|eval\.|checkpoint\.|mesh\.|train\.(attention|remat|loss_chunk|offload_optimizer):"
)
"""How lines of `differences` begin that a resumed run need not ask for: they change what is learned by rounding at
most. (Of a path only the text at its end counts, which has a hash of its own. `train.accumulate` is none of them: each
microbatch draws its own dropout.)"""


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model")
"""Names of a model's tokenizer; where there are several the first."""


def run_folder(config: RunConfig) -> Path:
    """Where a run lives: `output`, or `runs/<name>`."""
    return user_path(config.output) if config.output else Path("runs", config.name)


def is_run_folder(folder: Path) -> bool:
    """True for what `create` has made."""
    return (folder / "config.json").is_file()


def has_checkpoint(folder: Path) -> bool:
    """True once something can be gone on with; until then a run is as if it had not begun.

    Raises:
        OSError: the checkpoints that are there cannot be listed.
    """
    try:
        return any(name.isdecimal() for name in os.listdir(folder / "checkpoints"))
    except (FileNotFoundError, NotADirectoryError):
        return False


def saved_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`, with `output` set to where it was found.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    try:
        config = from_dict(RunConfig, json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"'{folder}' is not a run folder: cannot read '{path}': {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a configuration: {error}") from None
    return replace(config, output=str(folder))


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """`field: old -> new` for each difference that changes what is learned by more than rounding."""
    return [line for line in differences(absolute(old), absolute(new)) if not HARMLESS.match(line)]


def absolute(config: RunConfig) -> RunConfig:
    """`config`, with paths that lead to the same files from any working directory."""

    def whole(path: str | None) -> str | None:
        return path and str(user_path(path).resolve())

    data, tokenizer = config.data, config.tokenizer
    template = tokenizer.chat_template
    sources = tuple(s if s.kind == "tfds" else replace(s, path=whole(s.path)) for s in data.sources)
    return replace(
        config,
        base=whole(config.base),
        data=replace(data, sources=sources, cache_dir=whole(data.cache_dir)),
        tokenizer=replace(
            tokenizer,
            path=whole(tokenizer.path),
            chat_template=template if template in BUILT_IN_TEMPLATES else whole(template),
        ),
    )


def saved_tokenizer(folder: Path) -> Path:
    """The run's copy of its tokenizer.

    Raises:
        UserError: it is gone.
    """
    for name in TOKENIZERS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"run folder '{folder}': its tokenizer ({' or '.join(TOKENIZERS[:2])}) is missing")


def enter(folder: Path, config: RunConfig, allow_change: bool) -> TokenizerConfig:
    """The tokenizer to use for a run in `folder`: its own copy if it has a checkpoint already, else that of `config`.

    A chat template may be given to a run that has none, such as an imported adapter.

    Raises:
        UserError: the run that is there has another result by its configuration, and no change is allowed; or its
            tokenizer or chat template would change, or is gone.
    """
    if not has_checkpoint(folder):
        return config.tokenizer
    saved, own, given = saved_config(folder), saved_tokenizer(folder), config.tokenizer
    new = None if has_template(folder) else given.chat_template
    known = replace(saved.tokenizer, chat_template=new or saved.tokenizer.chat_template)
    if given.path and os.path.isfile(given.path) and filecmp.cmp(given.path, own, shallow=False):
        # Only the place has changed, and of a file what is said of training has no meaning.
        known = replace(given, begins_prompts=known.begins_prompts, chat_template=known.chat_template)
    changed = changes(replace(saved, tokenizer=known), config)
    if fixed := [line for line in changed if line.startswith("tokenizer.")]:
        raise UserError(f"the tokenizer of the run in '{folder}' cannot change:" + _listed(fixed))
    if changed and not allow_change:
        raise UserError(
            f"these changes to the run in '{folder}' change its result:{_listed(changed)}\n"
            "go on with them by --allow-change, or start another run with --name or --output"
        )
    return TokenizerConfig(path=str(own), chat_template=new)


def has_template(folder: Path) -> bool:
    """Whether there is a chat template beside the tokenizer of a model."""
    described = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        described.is_file() and "chat_template" in read_json(described, dict)
    )


def create(folder: Path, config: RunConfig, tokenizer: Path, template: "ChatTemplate | None" = None) -> None:
    """Makes a run folder with a configuration and a copy of a tokenizer, whole or not at all.

    Its chat template is the one that is given, or else that beside the tokenizer. What the publishers of a base say of
    its use, in `generation_config.json`, holds for a run with the same tokenizer too.

    A run that is there but has no checkpoint yet is made anew; its log is kept.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    folder = folder.absolute()
    writing = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        save_config(writing, config)
        shutil.copyfile(tokenizer, writing / f"tokenizer{tokenizer.suffix}")
        beside = tokenizer.with_name("tokenizer_config.json")  # names the special tokens of a tokenizer.json
        if tokenizer.suffix == ".json" and beside.is_file():
            shutil.copyfile(beside, writing / beside.name)
        own = tokenizer.with_name("chat_template.jinja")
        if template is not None:
            template.save(writing)
        elif own.is_file():
            shutil.copyfile(own, writing / own.name)
        if config.base is not None:
            base = user_path(config.base)
            said = base / "generation_config.json"
            if said.is_file() and filecmp.cmp(tokenizer, saved_tokenizer(base), shallow=False):
                shutil.copyfile(said, writing / said.name)
        if is_run_folder(folder):
            with alone(folder):
                for copied in ("tokenizer*", "chat_template.jinja", "generation_config.json"):
                    for old in folder.glob(copied):
                        old.unlink()
                shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
                for new in writing.iterdir():
                    os.replace(new, folder / new.name)
        else:
            os.rename(writing, folder)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder '{folder}': {error.strerror}; choose another with --output or --name"
        ) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)


@contextlib.contextmanager
def removed_unless_begun(folder: Path) -> Iterator[None]:
    """Removes a new run folder again where the block fails before the run has written a metric."""
    try:
        yield
    except UserError:
        if not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def save_config(folder: Path, config: RunConfig) -> None:
    """Writes `config.json`, in place of the one that is there; its paths are absolute."""
    writing = folder / "config.json.writing"
    writing.write_text(json.dumps(to_dict(absolute(config)), indent=1) + "\n")
    os.replace(writing, folder / "config.json")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder; a process that dies holds nothing.

    Raises:
        UserError: another process trains in it, or it cannot be written.
    """
    with writing_in(folder):
        file = open(folder / "log.txt", "a")  # noqa: SIM115  closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in '{folder}'") from None
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """What a disk that is full, or a folder that is read-only, says to the user.

    Raises:
        UserError: the block could not read or write a file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write in the run folder '{folder}': {error.strerror}; what was saved is whole: make room or mend "
            "the folder, and run the same command again"
        ) from error


def _listed(lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
