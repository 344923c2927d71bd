"""A published model, in whichever format it is."""

from pathlib import Path

from jaxllm.config import UserError
from jaxllm.interop.gguf.read import open_gguf
from jaxllm.interop.huggingface import PICKLES, open_folder
from jaxllm.interop.published import Published


def open_published(path: Path) -> Published:
    """The model in a Hugging Face folder, or in a GGUF file or a folder that holds one.

    Raises:
        UserError: there is none, it is damaged, or of a kind that is not known.
    """
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if (path / "config.json").is_file() or not files:
            return open_folder(path)
        if len(files) > 1:
            raise UserError(f"'{path}' holds {len(files)} GGUF files: name one, such as '{files[0]}'")
        path = files[0]
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.suffix in PICKLES:
        raise UserError(f"'{path}' is a pickle, which may run any program when it is opened: pickles are not read")
    if not path.exists():
        raise UserError(f"there is no '{path}': name a Hugging Face folder or a GGUF file")
    raise UserError(f"'{path}' is neither a Hugging Face folder, with its config.json, nor a GGUF file (.gguf)")
