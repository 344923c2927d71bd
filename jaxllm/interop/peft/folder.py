"""The two files of an adapter, opened and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import whole_folder
from jaxllm.config import RunConfig, TransformerConfig, TuningConfig, UserError
from jaxllm.interop.families import Family
from jaxllm.interop.huggingface import PICKLES, read_tensor, stored_tensors, write_safetensors
from jaxllm.interop.peft.low_rank import Norms, read_low_rank, write_low_rank
from jaxllm.interop.peft.settings import LOW_RANK_TYPES, check
from jaxllm.interop.peft.virtual import read_virtual, write_virtual
from jaxllm.interop.published import Tensor
from jaxllm.interop.settings import Settings
from jaxllm.peft.low_rank import factors_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

KINDS = {"lora": "LORA", "adalora": "LORA", "prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
"""How our methods are written: of AdaLoRA what came of it, with the ranks that each layer has left."""


def read_peft(
    folder: Path, family: Family, model: TransformerConfig, norms: Norms
) -> tuple[TuningConfig, dict[str, np.ndarray]]:
    """An adapter as what of a model is tuned, and its leaves by their paths, in float32.

    AdaLoRA is read as LoRA, with the diagonal as a part of B.

    Args:
        folder: with its two files.
        family: of its base.
        model: the base.
        norms: gives those of the columns of the base's kernels; is called for DoRA.

    Raises:
        UserError: a file is missing or damaged, a pickle, has something without a meaning here, or is for another base.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"'{folder}' is no adapter of PEFT: it has no {CONFIG}")
    settings = Settings(read_json(path, dict), f"'{path}'")
    check(settings)
    tensors = _tensors(folder)
    if settings["peft_type"] in LOW_RANK_TYPES:
        return read_low_rank(settings, tensors, family, model, norms)
    return read_virtual(settings, tensors, model)


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if path.is_file():
        found = stored_tensors(path)
        return {name: read_tensor(path, name, tensor).astype(np.float32) for name, tensor in found.items()}
    for pickle in (folder / f"adapter_model{suffix}" for suffix in PICKLES):
        if pickle.is_file():
            raise UserError(
                f"'{pickle}' is a pickle, which may run any program when it is opened, and is not read; have its "
                f"publisher, or PEFT's save_pretrained, write {WEIGHTS}"
            )
    raise UserError(f"'{folder}' has no {WEIGHTS}")


def write_peft(
    folder: Path, config: RunConfig, leaves: Mapping[str, np.ndarray], family: Family, base_name: str, norms: Norms
) -> dict[str, Any]:
    """Writes what a run has trained as a folder, whole or not at all, and returns what its `adapter_config.json` says.

    Args:
        folder: must not be there, or be empty.
        config: of the run.
        leaves: of its adapter, by their paths.
        family: of its base.
        base_name: where others find the base.
        norms: as for `read_peft`.

    Raises:
        UserError: PEFT has no form of this method, or the folder holds something.
        OSError: it cannot be written.
    """
    tuning, model = config.tuning, config.model
    if tuning.method not in KINDS:
        raise UserError(f"tuning.method = {tuning.method!r}: PEFT has no form of it; it has of {', '.join(KINDS)}")
    if tuning.also:
        raise UserError(
            f"tuning.also = {tuning.also!r}: the run has trained parameters of the base too, which an adapter of PEFT "
            "does not hold; `jaxllm export` writes the whole model"
        )
    if KINDS[tuning.method] == "LORA":
        values, tensors = write_low_rank(factors_of(config, leaves), tuning.lora.rank_stabilised, family, model, norms)
        values["lora_dropout"] = tuning.lora.dropout
    else:
        values, tensors = write_virtual(leaves, model)
    said = {
        "peft_type": KINDS[tuning.method],
        "task_type": _task(model),
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        **values,
    }
    with whole_folder(folder) as writing:
        (writing / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
        made = [(name, Tensor(array.shape, "float32", "F32"), array.copy) for name, array in tensors.items()]
        write_safetensors(writing / WEIGHTS, made)
    return said


def _task(model: TransformerConfig) -> str | None:
    """By which the library chooses a class; none where the one it would choose trains a head too."""
    if model.architecture == "encoder":
        return None
    return "CAUSAL_LM" if model.architecture == "decoder" else "SEQ_2_SEQ_LM"
