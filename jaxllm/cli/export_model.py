"""`jaxllm export`: a model folder or a run of ours as others read it."""

from dataclasses import dataclass
from typing import Literal

import tyro

from jaxllm.cli.model_folders import check_is_foldable, files_beside, published_config
from jaxllm.common.paths import user_path
from jaxllm.config import UserError
from jaxllm.train.run_folder import saved_config

GGUF_TYPES = {"float32": "f32", "float16": "f16", "q8_0": "q8_0"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """Export a model as a Hugging Face folder, or as a GGUF file for llama.cpp."""

    model: tyro.conf.Positional[str]
    """A model folder, or the folder of a run; of one that has trained LoRA, the base with the updates in it."""
    out: tyro.conf.Positional[str]
    """What is made: a folder, or a file whose name ends in `.gguf`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    """Of the matrices; auto is that of the parameters, or of the base that an adapter is in; for GGUF float16. `q8_0`
    is for GGUF only, bfloat16 not."""
    family: str | None = None
    """As which family, such as llama; none means that of an imported model, or the first that can express it."""
    step: int | Literal["best"] | None = None
    """The checkpoint of a run, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the parameters where the run keeps one."""
    verify: bool = False
    """Compare logits with those of transformers, which must be installed: pip install 'jaxllm[bench]'."""


def run(argv: list[str]) -> int:
    """Writes the folder or the file, whole or not at all, and prints what is in it.

    Returns:
        0; or 1 where the logits are not those of transformers.

    Raises:
        UserError: a model, an option or a place that will not do.
    """
    command = tyro.cli(Command, args=argv, prog="jaxllm export")
    folder, out = user_path(command.model), user_path(command.out)
    is_gguf = out.suffix == ".gguf"
    if is_gguf and command.dtype == "bfloat16":
        raise UserError("--dtype bfloat16: GGUF files are written in float32, float16 or q8_0")
    if not is_gguf and command.dtype == "q8_0":
        raise UserError(f"--dtype q8_0: is for GGUF; name a file that ends in .gguf, and not '{out}'")

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"'{out}' is there already: name another place, or remove it")

    check_is_foldable(folder, saved_config(folder))

    import numpy as np

    from jaxllm.common.trees import flatten
    from jaxllm.interop.convert import exported
    from jaxllm.interop.gguf.write import write_gguf
    from jaxllm.interop.huggingface import write_folder
    from jaxllm.interop.sentencepiece_files import hugging_face_files
    from jaxllm.interop.verify import verify
    from jaxllm.train.params import load_run_params

    config, params, _ = load_run_params(folder, command.step, command.ema)
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    family, published = published_config(folder, config.model, command.family)
    types = {array.dtype for array in arrays.values()}
    own = min(types, key=lambda dtype: dtype.itemsize).name
    dtype = command.dtype if command.dtype != "auto" else "float16" if is_gguf else own
    files = hugging_face_files(files_beside(folder), published)
    tensors = list(exported(config.model, family, arrays, np.result_type(*types).name if is_gguf else dtype))
    if is_gguf:
        write_gguf(out, published, tensors, files, GGUF_TYPES[dtype])  # type: ignore[arg-type]
    else:
        write_folder(out, {**published, "dtype": dtype, "torch_dtype": dtype}, tensors, files)
    count = sum(array.size for array in arrays.values())
    print(f"exported {family.model_type} with {count:,} parameters in {len(tensors):,} tensors as {dtype} to '{out}'")
    if not command.verify:
        return 0
    print(verified := verify(out, config.model, params))
    return 0 if verified.is_sound(is_rounded=types != {np.dtype(dtype)}) else 1
