"""What commands that write model folders have in common: where a model comes from, and what is kept beside it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path
from jaxllm.config import RunConfig, TransformerConfig, UserError
from jaxllm.models.adapters import TAKES_PLACES
from jaxllm.train.run_folder import TOKENIZERS, is_run_folder, saved_config, saved_tokenizer

if TYPE_CHECKING:
    from jaxllm.common.trees import Tree
    from jaxllm.interop.families import Family

SOURCE = "source.json"
"""The `config.json` of an imported model as its publishers wrote it."""


def imported_folder(folder: Path) -> Path | None:
    """The imported model that a run began with, or that a folder is itself; none where there is none any more."""
    while not (folder / SOURCE).is_file():
        base = saved_config(folder).base if is_run_folder(folder) else None
        if base is None:
            return None
        folder = user_path(base)
    return folder


def published_config(folder: Path, model: TransformerConfig, wanted: str | None) -> tuple["Family", Mapping[str, Any]]:
    """The family to write, and its `config.json`: the one that came with the model, while it still tells its shape.

    Args:
        folder: of the model, or of a run that began with it.
        model: that is written.
        wanted: the name of a family, if one is asked for.

    Raises:
        UserError: no family can express the model, or not that one.
    """
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.interop.convert import choose_family, named_tensors
    from jaxllm.interop.families import family_of
    from jaxllm.interop.settings import Settings

    if (imported := imported_folder(folder)) is not None:
        source = imported / SOURCE
        values = read_json(source, dict)
        family = family_of(Settings(values, str(source)))
        names = named_tensors(model, family)
        if wanted in (None, family.model_type) and family.read(Settings(values, str(source), names)) == model:
            return family, values
    tokenizer = load_tokenizer(saved_tokenizer(folder))
    if model.architecture == "encoder_decoder" and model.start_token is None:
        model = replace(model, start_token=tokenizer.pad_id)
    family = choose_family(model, wanted)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    return family, {**ids, **family.write(model), "model_type": family.model_type}


def files_beside(folder: Path) -> dict[str, bytes]:
    """What a model is given away with, such as its tokenizer: what a run has of it, and what its base has more, as long
    as both have one tokenizer."""
    from jaxllm.interop.huggingface import files_of

    own, imported = files_of(folder), imported_folder(folder)
    theirs = {} if imported is None else files_of(imported)
    mine, others = ({files[name] for name in TOKENIZERS if name in files} for files in (own, theirs))
    return {**theirs, **own} if mine & others else own


def save_params(folder: Path, params: "Tree", tokenizer: Path) -> None:
    """The only checkpoint of a model that is not trained further in its folder."""
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.train.checkpoint import Checkpoints, Info

    info = Info(step=0, tokens=0, corpus="", tokenizer=load_tokenizer(tokenizer).fingerprint)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save({"params": params}, info)
        checkpoints.wait()


def check_is_removable(folder: Path, config: RunConfig) -> None:
    """
    Raises:
        UserError: what a run has trained cannot be taken out again of the model that it is a part of.
    """
    check_is_foldable(folder, config)
    for field, value, why in (
        ("lora.magnitudes", config.tuning.lora.magnitudes, "the norms that DoRA divided by are not known any more"),
        ("also", config.tuning.also, "what those parameters were before is not known any more"),
    ):
        if value:
            raise UserError(
                f"'{folder}' cannot be taken out of its base again (tuning.{field} = {value!r:.60}): {why}; load the "
                "base itself"
            )


def check_is_foldable(folder: Path, config: RunConfig) -> None:
    """
    Raises:
        UserError: what a run has trained cannot be a part of a model's own parameters.
    """
    method = config.tuning.method
    if method in TAKES_PLACES:
        raise UserError(
            f"'{folder}' has virtual tokens (tuning.method = {method!r}), which cannot be a part of a model's own "
            "parameters; `jaxllm adapter export` writes them for PEFT"
        )
    if method == "hybrid":
        raise UserError(
            f"'{folder}' has gated keys and values (tuning.method = 'hybrid'), which cannot be a part of a model's own "
            "parameters, nor of an adapter of PEFT; `jaxllm generate` and `jaxllm chat` take the run as it is"
        )
