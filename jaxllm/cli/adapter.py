"""`jaxllm adapter`: adapters to and from PEFT, into their base, added up, and what is in one."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxllm.cli.adapter_runs import Adapter, check_is_adapter, load_adapter, save_adapter
from jaxllm.cli.model_folders import (
    SOURCE,
    check_is_foldable,
    check_is_removable,
    files_beside,
    imported_folder,
    published_config,
    save_params,
)
from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path, whole_folder
from jaxllm.config import RunConfig, TokenizerConfig, TransformerConfig, TuningConfig, UserError
from jaxllm.train.run_folder import create, save_config, saved_config, saved_tokenizer

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jaxllm.common.trees import Tree


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an adapter as Hugging Face's PEFT reads it: adapter_config.json and adapter_model.safetensors."""

    run: tyro.conf.Positional[str]
    """The folder of a run that has trained an adapter."""
    out: tyro.conf.Positional[str]
    """The folder that is made."""
    base_name: str | None = None
    """Where others find the base, such as `org/model`; none means what an imported base calls itself, or else its
    folder here."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the adapter where the run keeps one."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run folder of an adapter that PEFT has written; `generate`, `chat` and `export` take it, and `train` goes
    on with it on other text by --allow-change."""

    source: tyro.conf.Positional[str]
    """The folder, with its adapter_config.json and adapter_model.safetensors."""
    out: tyro.conf.Positional[str]
    """The run folder that is made."""
    base: str
    """The model folder that it is an adapter for."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make a model folder of a base with the updates of a run in its matrices, which needs no base any more."""

    run: tyro.conf.Positional[str]
    """The folder of a run that has trained LoRA or AdaLoRA."""
    out: tyro.conf.Positional[str]
    """The model folder that is made."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the parameters; auto is that of the base. The sums are float32, and rounded once."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the adapter where the run keeps one."""


@dataclass(frozen=True, kw_only=True)
class Unmerge:
    """Take the updates of a run out of a model into which they were merged: its base again, up to rounding."""

    merged: tyro.conf.Positional[str]
    """The model folder; it may have been trained on since."""
    run: tyro.conf.Positional[str]
    """The folder of the run that has trained them."""
    out: tyro.conf.Positional[str]
    """The model folder that is made."""
    step: int | Literal["best"] | None = None
    """The checkpoint that was merged, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the adapter where the run keeps one."""


@dataclass(frozen=True, kw_only=True)
class Combine:
    """Add up adapters of one base: a run folder whose change of the base is the sum of theirs."""

    out: tyro.conf.Positional[str]
    """The run folder that is made."""
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs that have trained adapters, each perhaps with a weight: RUN or RUN:WEIGHT."""
    average: bool = False
    """Weigh those that have no weight by one over how many there are, and not by 1. Virtual tokens are averaged by
    their weights in any case."""
    rank: int | None = None
    """The largest rank of the result, by a singular value decomposition; none keeps all, so that the sum is exact."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print what an adapter is: its method, what it changes by which ranks, its size and its base."""

    run: tyro.conf.Positional[str]
    """The folder of a run that has trained an adapter."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""


Command = (
    Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Unmerge, tyro.conf.subcommand("unmerge")]
    | Annotated[Combine, tyro.conf.subcommand("combine")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)


def run(argv: list[str]) -> int:
    """Does what the subcommand says, and prints what came of it.

    Raises:
        UserError: a run, an option or a place that will not do.
    """
    command: Any = tyro.cli(Command, args=argv, prog="jaxllm adapter")
    if isinstance(command, Show):
        from jaxllm.cli.adapter_show import show

        show(load_adapter(user_path(command.run), command.step))
        return 0
    if (out := user_path(command.out)).is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"'{out}' is there already: name another folder, or remove it")
    made_by: dict[type, Callable[[Any, Path], None]]
    made_by = {Export: _export, Import: _import, Merge: _merge, Unmerge: _unmerge, Combine: _combine}
    made_by[type(command)](command, out)
    return 0


def _norms(model: TransformerConfig, flat: Mapping[str, "jax.Array"], module: str) -> "np.ndarray":
    """Those `[L, O]` of the columns of a module's kernels in `flat`, which DoRA's magnitudes are at first."""
    import numpy as np

    from jaxllm.models.adapters import linear_modules
    from jaxllm.peft.merge import magnitudes

    kernel = flat[f"{module}/kernel"]
    return np.asarray(magnitudes(linear_modules(model)[module], kernel)).reshape(len(kernel), -1)


def _export(command: Export, out: Path) -> None:
    from jaxllm.common.trees import flatten
    from jaxllm.interop.peft.folder import write_peft
    from jaxllm.train.params import load_own_base

    adapter = load_adapter(user_path(command.run), command.step, command.ema)
    config = adapter.config
    base = functools.cache(lambda: flatten(load_own_base(adapter.folder, config)))
    norms = functools.cache(lambda module: _norms(config.model, base(), module))
    family, _ = published_config(adapter.folder, config.model, None)
    said = write_peft(out, config, adapter.leaves, family, command.base_name or _base_name(adapter), norms)
    print(
        f"exported the adapter of '{adapter.folder}' at step {adapter.step} as {said['peft_type']} for a "
        f"{family.model_type}, '{said['base_model_name_or_path']}', to '{out}'"
    )


def _base_name(adapter: Adapter) -> str:
    """What an imported base calls itself, or else its folder."""
    assert adapter.config.base is not None
    imported = imported_folder(adapter.folder)
    name = None if imported is None else read_json(imported / SOURCE, dict).get("_name_or_path")
    return name if isinstance(name, str) and name else str(user_path(adapter.config.base).resolve())


def _import(command: Import, out: Path) -> None:
    from jaxllm.common.trees import flatten
    from jaxllm.interop.peft.folder import read_peft
    from jaxllm.models.adapters import virtual_tokens
    from jaxllm.train.params import Origin, check_base, fingerprint, load_run_params
    from jaxllm.validation import problems, refuse

    source, base = user_path(command.source), user_path(command.base)
    base_config, params, info = load_run_params(base)
    check_base(replace(base_config, base=str(base)), base_config)
    flat, model = flatten(params), base_config.model
    family, _ = published_config(base, model, None)

    tuning, leaves = read_peft(source, family, model, lambda module: _norms(model, flat, module))
    tokenizer = TokenizerConfig(path=str(saved_tokenizer(base)), begins_prompts=base_config.tokenizer.begins_prompts)
    # Rows have as much room for text as the base's had.
    length = min(model.max_positions, base_config.data.sequence_length + virtual_tokens(tuning))
    data = replace(base_config.data, sequence_length=length)
    config = replace(base_config, base=str(base), tokenizer=tokenizer, tuning=tuning, data=data)
    refuse(problems(config))
    origin = Origin(info.step, fingerprint(base, info.step, params))
    save_adapter(out, config, leaves, origin, saved_tokenizer(base))
    count = sum(leaf.size for leaf in leaves.values())
    print(f"imported an adapter of {count:,} parameters (tuning.method = {tuning.method!r}) for '{base}' to '{out}'")


def _merge(command: Merge, out: Path) -> None:
    import jax

    from jaxllm.peft.merge import folded
    from jaxllm.train.params import load_own_base, load_trained

    folder = user_path(command.run)
    check_is_adapter(folder, saved_config(folder))
    check_is_foldable(folder, saved_config(folder))
    config, trained, info = load_trained(folder, command.step, command.ema)
    base = load_own_base(folder, config)
    dtype = None if command.dtype == "auto" else command.dtype
    params = folded(config, trained, base, dtype)
    params = jax.tree.map(lambda x, was: x.astype(dtype or was.dtype), params, base)
    made = _write_model(out, config, params, folder)
    print(f"merged the adapter of '{folder}' at step {info.step} into its base: {made}")


def _unmerge(command: Unmerge, out: Path) -> None:
    import jax

    from jaxllm.peft.merge import unfolded
    from jaxllm.train.params import check_base, load_run_params, load_trained

    folder, source = user_path(command.run), user_path(command.merged)
    check_is_adapter(folder, saved_config(folder))
    check_is_removable(folder, saved_config(folder))
    config, trained, info = load_trained(folder, command.step, command.ema)
    own, merged, _ = load_run_params(source)
    check_base(replace(config, base=str(source)), own)
    params = jax.tree.map(lambda x, was: x.astype(was.dtype), unfolded(config, trained, merged), merged)
    made = _write_model(out, own, params, source)
    print(f"took the adapter of '{folder}' at step {info.step} out of '{source}': {made}")


def _write_model(out: Path, config: RunConfig, params: "Tree", folder: Path) -> str:
    """Makes a model folder of parameters, with the tokenizer and what else lies in `folder`; what it is, in words."""
    import jax

    tokenizer, imported = saved_tokenizer(folder), imported_folder(folder)
    alone = replace(config, name=out.absolute().name, output=None, base=None, tuning=TuningConfig())
    with whole_folder(out) as writing:
        create(writing, alone, tokenizer)
        for name, content in files_beside(folder).items():
            (writing / name).parent.mkdir(exist_ok=True)
            (writing / name).write_bytes(content)
        if imported is not None:
            (writing / SOURCE).write_bytes((imported / SOURCE).read_bytes())
        own = replace(alone.tokenizer, path=str(out / saved_tokenizer(writing).name))
        save_config(writing, replace(alone, tokenizer=own))
        save_params(writing, params, tokenizer)
    types = ", ".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{count:,} parameters, {types}, in '{out}'"


def _combine(command: Combine, out: Path) -> None:
    from jaxllm.cli.adapter_combine import combined, weighed

    if not command.runs:
        raise UserError("jaxllm adapter combine takes the folder to make, and then the runs whose adapters it adds up")
    if command.rank is not None and command.rank < 1:
        raise UserError(f"--rank {command.rank}: expected 1 or more")
    default = 1 / len(command.runs) if command.average else 1.0
    given = [weighed(text, default) for text in command.runs]
    first = load_adapter(given[0][0])
    adapters = [first, *(load_adapter(folder) for folder, _ in given[1:])]
    sum_of_all = combined([weight for _, weight in given], adapters, command.rank)
    assert first.origin is not None
    config = replace(first.config, tuning=sum_of_all.tuning)
    save_adapter(out, config, sum_of_all.leaves, first.origin, saved_tokenizer(first.folder))
    print(f"combined {len(adapters)} adapters for '{config.base}' to '{out}': {sum_of_all.told}")
