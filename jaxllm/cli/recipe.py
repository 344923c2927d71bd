"""From the words after a subcommand to a checked configuration: a recipe or a run folder, then overrides."""

import dataclasses
import difflib
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import tyro

import jaxllm.config
from jaxllm.config import RunConfig, UserError, from_dict, to_dict
from jaxllm.train.run_folder import saved_config
from jaxllm.validation import problems, validate

Own = TypeVar("Own")

ABOUT = """RECIPE is a Python file with a function recipe() -> RunConfig, the folder of a run, or its config.json.
The options override its fields."""


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


def load_run_with(argv: Sequence[str], prog: str, own: Own) -> tuple[RunConfig, Own]:
    """`load_run` for a command that has options of its own: the fields of the dataclass `own`, at their defaults."""
    if argv and argv[0] in ("-h", "--help"):
        config, options = RunConfig(), argv
    else:
        config, options = _base(argv, prog), argv[1:]
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("own", Annotated[type(own), tyro.conf.arg(name="")]),
            ("run", Annotated[RunConfig, tyro.conf.arg(name="")]),
        ],
    )
    given, unknown = tyro.cli(
        arguments,
        args=list(options),
        default=arguments(own, config),
        prog=f"{prog} RECIPE",
        description=ABOUT,
        return_unknown_args=True,
    )
    if unknown:
        mistakes = [_unknown(unknown, [*_flags(own), *_flags(config)]), *problems(given.run)]
        raise UserError("\n  ".join(mistakes))
    validate(given.run)
    by_folder = not argv[0].endswith(".py")
    moved = by_folder and given.run.name != config.name and not any(word.startswith("--output") for word in options)
    # A run that was opened by its folder is another one, in a folder of its own, if its name alone is changed.
    return dataclasses.replace(given.run, output=None) if moved else given.run, given.own


def _base(argv: Sequence[str], prog: str) -> RunConfig:
    """The configuration before it is overridden."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{prog} takes a recipe or a run folder first, then options; there are {_nearest('', 9)}")
    path = Path(argv[0]).expanduser()
    if path.is_dir():
        return saved_config(path)
    if not path.exists():
        raise UserError(f"there is no recipe or run folder '{argv[0]}'; the nearest recipes are {_nearest(argv[0], 3)}")
    if path.name == "config.json":
        return saved_config(path.parent)
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


def _from_recipe(path: Path) -> RunConfig:
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
    try:
        return from_dict(RunConfig, to_dict(config))
    except UserError as error:
        raise UserError("\n  ".join([f"recipe '{path}':", *str(error).splitlines()])) from None


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


def _flags(config: Any, prefix: str = "--") -> Iterator[str]:
    """Every option that `config` can be overridden by."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from _flags(item, f"{name}.{i}.")
        else:
            yield name
            if isinstance(value, bool):
                yield f"{prefix}no-{name.removeprefix(prefix)}"


def _unknown(words: list[str], flags: list[str]) -> str:
    """What to say of words that are no option, or that follow none that takes them."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if not options:
        return f"unexpected '{words[0]}'; options are --field VALUE, and --field or --no-field for a switch"
    return "\n".join(f"there is no option '{option}'; did you mean '{_closest(option, flags)}'?" for option in options)


def _closest(option: str, flags: list[str]) -> str:
    """The flag whose whole name, or whose last part, is most like the option's; the first of equals."""
    option = re.sub(r"^--no-(.+\.)", r"--\1no-", option)  # a switch is negated in its last part

    def likeness(flag: str) -> float:
        pairs = ((option, flag), (option.lstrip("-").rpartition(".")[2], flag.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(flags, key=likeness)
