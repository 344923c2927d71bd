"""From the words after a subcommand to a checked configuration: a recipe or a run folder, then overrides."""

import contextlib
import dataclasses
import difflib
import io
import re
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, takewhile
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import tyro

import jaxllm.config
from jaxllm.common.paths import user_path
from jaxllm.config import RunConfig, UserError, expected, read_dict, to_dict
from jaxllm.train.run_folder import run_folder, saved_config, saved_tokenizer
from jaxllm.validation import problems, refuse

Own = TypeVar("Own")

ABOUT = """RECIPE is a Python file with a function recipe() -> RunConfig, the folder of a run, or its config.json.
The options override its fields."""


SHORT = {"--skip-bad": "--data.skip-bad"}
"""Options that are asked for by another name, where a message offers them."""


@dataclasses.dataclass(frozen=True)
class _Nothing:
    """No option of a command's own."""


def load_run(argv: Sequence[str], prog: str) -> RunConfig:
    """The configuration that `argv` asks for: a recipe, a run folder or a `config.json`, then `--field value`.

    `prog` names the command in help. `--help` prints what can be overridden and exits.

    Raises:
        UserError: no such recipe, one that fails or returns something else, an unknown option, or a
            configuration that does not hold together, with every mistake.
    """
    return load_run_with(argv, prog, _Nothing())[0]


def load_run_with(
    argv: Sequence[str],
    prog: str,
    own: Own,
    devices: Callable[[Own], int | None] | None = None,
    waits: Callable[[Own], bool] = lambda own: False,
) -> tuple[RunConfig, Own]:
    """`load_run` for a command that has options of its own: the fields of the dataclass `own`, at their defaults.

    The mesh is held against the number that `devices` gives, if any: it is called with `own` once the options are read;
    but where it `waits` for other processes, only for a run without other mistakes.
    """
    wants_help = argv and argv[0] in ("-h", "--help")
    config, wrong = (RunConfig(), {}) if wants_help else _base(argv, prog)
    options = argv if wants_help else argv[1:]
    (given, run), unknown, unread = _overridden(options, own, config, prog)
    if run.base is not None and any(word.partition("=")[0] == "--base" for word in options):
        begun = _of_base(dataclasses.replace(config, base=run.base))
        (given, run), unknown, unread = _overridden(options, own, begun, prog)
    wrong |= unread
    mistakes, known = [*unknown, *wrong.values()], None
    if devices and not (waits(given) and (mistakes or problems(run, None, wrong))):
        known = devices(given)
    refuse([*mistakes, *problems(run, known, wrong)])
    by_folder = not argv[0].endswith(".py")
    moved = by_folder and run.name != config.name and not any(word.startswith("--output") for word in options)
    return _moved(config, run) if moved else run, given


def _of_base(run: RunConfig) -> RunConfig:
    """`run` with the model of its base, but for the dropout, which a base need not have had."""
    assert run.base is not None
    own = run.model
    model = dataclasses.replace(saved_config(user_path(run.base)).model, dropout=own.dropout)
    return dataclasses.replace(run, model=dataclasses.replace(model, first_dropout=own.first_dropout))


def _moved(config: RunConfig, run: RunConfig) -> RunConfig:
    """`run`, which goes by another name than the `config` of the run folder it was opened by: a run of its own."""
    run = dataclasses.replace(run, output=None)
    if config.tokenizer.path is None or run.tokenizer != config.tokenizer:
        return run
    copied = saved_tokenizer(run_folder(config))  # what it was copied from may be gone
    return dataclasses.replace(run, tokenizer=dataclasses.replace(run.tokenizer, path=str(copied)))


def _overridden(
    words: Sequence[str], own: Own, config: RunConfig, prog: str
) -> tuple[tuple[Own, RunConfig], list[str], dict[str, str]]:
    """`own` and `config` with the options in `words` that can be read.

    Also what to say of those that are unknown, and, by field, of those whose value is none.
    """
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("own", Annotated[type(own), tyro.conf.arg(name="")]),
            ("run", Annotated[RunConfig, tyro.conf.arg(name="")]),
        ],
    )

    def parse(words: Sequence[str]) -> tuple[Any, list[str]]:
        return tyro.cli(
            arguments,
            args=list(words),
            default=arguments(own, config),
            prog=f"{prog} RECIPE",
            description=ABOUT,
            return_unknown_args=True,
        )

    def is_readable(words: Sequence[str]) -> bool:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parse(words)
        except SystemExit:
            return False
        return True

    words = [SHORT.get(word, word) for word in words]
    takes, unreadable = dict(_flags(own)) | dict(_flags(config)), []
    if not {"-h", "--help"} & set(words) and not is_readable(words):  # tyro ends at the first that it cannot read
        groups = _groups(words)
        unreadable = [group for group in groups if not is_readable(group)]
        words = list(chain.from_iterable(group for group in groups if group not in unreadable))
    given, unknown = parse(words)
    unread = dict(_unreadable(group, takes) for group in unreadable)
    return (given.own, given.run), _unknown(unknown, list(takes)), unread


def _groups(words: Sequence[str]) -> list[list[str]]:
    """Each option with the words that follow it."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def _base(argv: Sequence[str], prog: str) -> tuple[RunConfig, dict[str, str]]:
    """The configuration before it is overridden; and what is wrong with the types of a recipe's, by field."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{prog} takes a recipe or a run folder first, then options; there are {_nearest('', 9)}")
    path = user_path(argv[0])
    if path.is_dir():
        return saved_config(path), {}
    if not path.exists():
        raise UserError(f"there is no recipe or run folder '{argv[0]}'; the nearest recipes are {_nearest(argv[0], 3)}")
    if path.name == "config.json":
        return saved_config(path.parent), {}
    if path.suffix != ".py":
        raise UserError(f"'{argv[0]}' is none of a recipe (.py), a run folder and its config.json")
    return _from_recipe(path)


def _nearest(name: str, most: int) -> str:
    """Recipes under `configs/`, here or beside the package, those most like `name` first."""
    beside = Path(__file__).parents[2] / "configs"
    folder = Path("configs") if Path("configs").is_dir() else beside
    recipes = [str(path) for path in sorted(folder.rglob("*.py"))]
    near = difflib.get_close_matches(name, recipes, n=most, cutoff=0.0)
    return ", ".join(near if name else recipes[:most]) or "none under configs/"


def _from_recipe(path: Path) -> tuple[RunConfig, dict[str, str]]:
    module = ModuleType("recipe")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        recipe = module.__dict__.get("recipe")
        if not callable(recipe):
            raise UserError(f"recipe '{path}' has no function recipe(), which returns a RunConfig")
        config = recipe()
    except UserError:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"recipe '{error.filename or path}'{line}: {error.msg}") from None
    except (Exception, SystemExit) as error:  # a recipe is the user's own code
        raise UserError(_failure(path, error)) from error
    if not isinstance(config, RunConfig):
        raise UserError(f"recipe '{path}': recipe() returned {config!r:.60}; it must return a RunConfig")
    config, mistakes = read_dict(RunConfig, to_dict(config))
    return config, {field: f"recipe '{path}': {mistake}" for field, mistake in mistakes.items()}


def _failure(path: Path, error: BaseException) -> str:
    """`recipe 'file', line 3: NameError: ...`; for a field that does not exist, with the nearest that does."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f", line {lines[-1]}" if lines else ""
    text = f"recipe '{path}'{where}: {type(error).__name__}: {error}"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        kind = getattr(jaxllm.config, unknown[1], None)
        if dataclasses.is_dataclass(kind):
            fields = [field.name for field in dataclasses.fields(kind)]
            text += f"; the nearest field is '{difflib.get_close_matches(unknown[2], fields, n=1, cutoff=0.0)[0]}'"
    return text


def _flags(config: Any, prefix: str = "--") -> Iterator[tuple[str, str]]:
    """Every option that `config` can be overridden by, and what it takes."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from _flags(item, f"{name}.{i}.")
        elif isinstance(value, bool):
            no = f"{prefix}no-{name.removeprefix(prefix)}"
            yield from ((option, f"no value, since it is a switch ({name}, {no})") for option in (name, no))
        else:
            yield name, expected(hints[field.name])


def _unknown(words: Sequence[str], flags: list[str]) -> list[str]:
    """What to say of words that are no option, or that follow none that takes them."""
    stray = list(takewhile(lambda word: not word.startswith("--"), words))[:1]
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [
        *(f"unexpected '{word}': options are --field VALUE, and --field or --no-field for a switch" for word in stray),
        *(f"{option}: there is no such option; did you mean '{_closest(option, flags)}'?" for option in options),
    ]


def _unreadable(group: Sequence[str], takes: dict[str, str]) -> tuple[str, str]:
    """The field of an option whose value is none of its type, and what to say of it."""
    option, _, value = group[0].partition("=")
    value = " ".join([value, *group[1:]]).strip()
    wanted = takes.get(option.replace("_", "-"), "another value")
    what = f"{option} {value}: expected {wanted}" if value else f"{option}: expected {wanted}, and nothing follows"
    return option.removeprefix("--").replace("-", "_"), what


def _closest(option: str, flags: list[str]) -> str:
    """The flag whose whole name, or whose last part, is most like the option's; the first of equals."""
    option = re.sub(r"^--no-(.+\.)", r"--\1no-", option)  # a switch is negated in its last part

    def likeness(flag: str) -> float:
        pairs = ((option, flag), (option.lstrip("-").rpartition(".")[2], flag.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(flags, key=likeness)
