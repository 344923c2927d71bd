"""Hugging Face folders: `config.json`, safetensors in one file or several, and the tokenizer's files."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import whole_folder
from jaxllm.config import UserError
from jaxllm.interop.published import Published, Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "generation_config.json"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
)
"""What is kept beside the weights, as it is, with further chat templates in a folder of their own."""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of safetensors that are read and written."""

SHARD_BYTES = 5_000_000_000
"""Of one file that is written."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_folder(folder: Path) -> Published:
    """The model in a Hugging Face folder.

    Raises:
        UserError: a file is missing or damaged, or the weights are in pickles, which are never opened.
    """
    config = read_json(folder / "config.json", dict)
    places = dict(_places(folder))
    tensors = {name: tensor for name, (_, tensor) in places.items()}

    def read(name: str) -> np.ndarray:
        path, tensor = places[name]
        return read_tensor(path, name, tensor)

    return Published(folder, config, tensors, read, files_of(folder))


def read_tensor(path: Path, name: str, tensor: Tensor) -> np.ndarray:
    """One tensor of a file of safetensors, which `stored_tensors` tells of.

    Raises:
        UserError: the file cannot be read.
    """
    # Opened for each tensor: what is mapped of a file that stays open counts as memory of this process.
    with _opened(path) as file:
        return np.asarray(file.get_tensor(name)).view(np.dtype(tensor.dtype))


def files_of(folder: Path) -> dict[str, bytes]:
    """What a model's folder holds beside its weights and `config.json`, by name."""
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    there = [folder / name for name in FILES if (folder / name).is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in (*there, *templates)}


def _places(folder: Path) -> Iterator[tuple[str, tuple[Path, Tensor]]]:
    """Each tensor's file, and what the file says of it."""
    if (folder / INDEX).is_file():
        yield from _indexed(folder)
        return
    path = folder / SINGLE
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise UserError(
                f"'{folder / pickles[0]}' is a pickle, which may run any program when it is opened, and is not read; "
                f"have its publisher, or transformers' save_pretrained, write {SINGLE}"
            )
        raise UserError(f"'{folder}' has no weights: neither {SINGLE} nor {INDEX}")
    for name, tensor in stored_tensors(path).items():
        yield name, (path, tensor)


def _indexed(folder: Path) -> Iterator[tuple[str, tuple[Path, Tensor]]]:
    index = folder / INDEX
    wanted = read_json(index, dict).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(file, str) for file in wanted.values()):
        raise UserError(f"'{index}': 'weight_map' must give the file of each tensor")
    for file in dict.fromkeys(wanted.values()):
        if PurePosixPath(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"'{index}' names the file {file!r}: must be a .safetensors file of the same folder")
        path = folder / file
        if not path.is_file():
            raise UserError(f"'{index}' names the file '{file}', which is not there: fetch the rest of the model")
        there = stored_tensors(path)
        for name in (name for name, own in wanted.items() if own == file):
            if name not in there:
                raise UserError(f"'{index}' says that '{file}' holds '{name}', and it does not: fetch both again")
            yield name, (path, there[name])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    safetensors = _library()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise UserError(f"'{path}' is damaged or is not of the format safetensors ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


def _library() -> Any:
    try:
        import safetensors
    except ImportError:
        raise UserError("safetensors is not installed, and reads models: pip install 'jaxllm[interop]'") from None
    return safetensors


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """What a file of safetensors holds, by name; but for integers, which no parameter is.

    Raises:
        UserError: the file cannot be read, or has a tensor of a type that is not known.
    """
    found = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  it is no dict
            piece = file.get_slice(name)
            stored = piece.get_dtype()
            if stored not in DTYPES:
                if stored in ("I64", "BOOL", "U8"):  # buffers, which no key map names
                    continue
                raise UserError(f"'{path}': '{name}' has the type {stored}: one of {', '.join(DTYPES)} would do")
            found[name] = Tensor(tuple(piece.get_shape()), DTYPES[stored], stored)
    return found


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor, Callable[[], np.ndarray]]],
    files: Mapping[str, bytes],
) -> None:
    """Writes a folder, a tensor at a time, whole or not at all.

    Args:
        folder: must not be there, or be empty.
        config: for `config.json`.
        tensors: each by its name, with what is known of it and how it is made.
        files: of the tokenizer and so on, by their names.

    Raises:
        UserError: the folder holds something.
        OSError: it cannot be written.
    """
    with whole_folder(folder) as writing:
        (writing / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        for name, content in files.items():
            (writing / name).parent.mkdir(exist_ok=True)
            (writing / name).write_bytes(content)
        _write_weights(writing, list(tensors))


def _write_weights(folder: Path, tensors: list[tuple[str, Tensor, Callable[[], np.ndarray]]]) -> None:
    """In one file, or in several with an index."""
    shards: list[list[tuple[str, Tensor, Callable[[], np.ndarray]]]] = [[]]
    size = 0
    for entry in tensors:
        own = _bytes(entry[1])
        if shards[-1] and size + own > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += own
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard)
        where |= {name: file for name, _, _ in shard}
    index = {"metadata": {"total_size": sum(_bytes(tensor) for _, tensor, _ in tensors)}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_safetensors(path: Path, tensors: Sequence[tuple[str, Tensor, Callable[[], np.ndarray]]]) -> None:
    """One file: the length of a header of JSON, the header, then the tensors, in one order, without gaps.

    (The library itself takes all tensors of a file at once, and copies them.)
    """
    ordered = sorted(tensors, key=lambda entry: (-np.dtype(entry[1].dtype).itemsize, entry[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor, _ in ordered:
        start, end = end, end + _bytes(tensor)
        header[name] = {"dtype": tensor.stored, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor, make in ordered:
            made = make()
            assert (made.shape, made.dtype.name) == (tensor.shape, tensor.dtype)
            file.write(np.ascontiguousarray(made).reshape(-1).view(np.uint8).data)


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
