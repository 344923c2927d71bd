"""A model written as a GGUF file, a tensor at a time."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxllm.common.paths import user_path, whole_file
from jaxllm.config import UserError
from jaxllm.interop.gguf.config import family_written, head_size, write_config
from jaxllm.interop.gguf.families import Family, tensor_names
from jaxllm.interop.gguf.header import gguf_package
from jaxllm.interop.gguf.layout import CUT, groups, layout, to_gguf
from jaxllm.interop.gguf.rope import FREQS, LLAMA3, llama3_factors, needed, rope_parameters
from jaxllm.interop.gguf.vocabulary import tokenizer_metadata
from jaxllm.interop.published import Tensor

DType = Literal["f32", "f16", "q8_0"]

FILE_TYPES: dict[DType, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's numbers for what most matrices are in."""

Names = Mapping[str, tuple[str, int | None]]
"""Of modules, as `tensor_names` gives them."""

Source = tuple[str, Tensor, Callable[[], np.ndarray]]
"""A tensor by its name in a Hugging Face folder, and what reads it."""

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""How tensors end that some folders hold and no model needs."""

SINGLE = ("ffn_gate_inp.weight", "position_embd.weight", "norm.weight")
"""How matrices and norms end that llama.cpp wants in F32 too."""

LARGEST = np.finfo(np.float16).max

BLOCK = 32
"""Values of Q8_0 that share a scale; rows of another length are written in F16."""


class Part(NamedTuple):
    """A tensor of the Hugging Face folder, which is a tensor of the file or one expert in it."""

    source: Source
    how: str | None


class Planned(NamedTuple):
    """A tensor of the file."""

    shape: tuple[int, ...]
    kind: str
    parts: list[Part]


def write_gguf(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[Source],
    files: Mapping[str, bytes],
    dtype: DType,
) -> None:
    """Writes a model so that llama.cpp reads it. The file is whole or not there.

    Args:
        path: of the file, which is replaced if it is there.
        config: what `config.json` holds.
        tensors: of the Hugging Face folder; each is read when its turn comes, and not kept.
        files: of the Hugging Face folder; the tokenizer must be among them.
        dtype: of the matrices. Vectors and norms are always float32.

    Raises:
        UserError: GGUF or llama.cpp cannot hold such a model or tokenizer, a tensor is missing or unknown, or the file
            cannot be written.
    """
    gguf = gguf_package()
    path = user_path(path)
    family = family_written(config)
    metadata = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        **write_config(config, family),
        **tokenizer_metadata(files, config),
    }
    names = tensor_names(family, metadata[f"{family.arch}.block_count"], config.get("num_local_experts", 0))
    planned = _plan(family, names, config, list(tensors), dtype)
    with whole_file(path) as writing:
        _write(writing, family, metadata, planned, config)


def _plan(
    family: Family, names: Names, config: Mapping[str, Any], sources: list[Source], dtype: DType
) -> dict[str, Planned]:
    """The tensors of the file, in the order of their first parts."""
    head = f"{family.head}.weight"
    tied = config.get("tie_word_embeddings", all(name != head for name, _, _ in sources))
    found: dict[str, dict[int | None, Part]] = {}
    if factors := _factors(family, config):
        found[FREQS] = {None: factors}
    for source in sources:
        module, _, suffix = source[0].rpartition(".")
        module = module if module in names else family.prefix + module
        if source[0].endswith(BUFFERS) or (tied and source[0] == head):
            continue
        name, expert = names.get(module, (None, None))
        if name is None or suffix not in ("weight", "bias"):
            raise UserError(f"the tensor '{source[0]}' has no place in a GGUF file of '{family.arch}'")
        found.setdefault(f"{name}.{suffix}", {})[expert] = Part(source, layout(family, module, f".{suffix}"))
    _require(family, names, config, found, tied)
    if family.head_required:
        head, embedding = (f"{names[module][0]}.weight" for module in (family.head, family.modules[0]))
        found.setdefault(head, found[embedding])
    return {
        name: _planned(name, [parts[e] for e in sorted(parts, key=lambda e: e or 0)], dtype)
        for name, parts in found.items()
    }


def _factors(family: Family, config: Mapping[str, Any]) -> Part | None:
    rope = rope_parameters(config)
    if family.arch == "gpt2" or rope["rope_type"] != "llama3":
        return None
    scaling = {name: needed(rope, name) for name in ("factor", *LLAMA3)}
    factors = llama3_factors(head_size(config), rope["rope_theta"], scaling)
    return Part((FREQS, Tensor(factors.shape, "float32", "F32"), lambda: factors), None)


def _require(
    family: Family, names: Names, config: Mapping[str, Any], found: Mapping[str, Mapping[Any, Part]], tied: bool
) -> None:
    for module, (name, expert) in names.items():
        if expert not in found.get(f"{name}.weight", {}) and not (tied and module == family.head):
            raise UserError(
                f"the model has no tensor '{module}.weight', which a GGUF file of '{family.arch}' must hold"
            )
    name, tensor, _ = found[f"{names[family.modules[0]][0]}.weight"][None].source
    if tensor.shape[0] != config["vocab_size"]:
        raise UserError(f"the tensor '{name}' has {tensor.shape[0]:,} rows, and vocab_size is {config['vocab_size']:,}")
    for (name, tensor, _), how in (part for parts in found.values() for part in parts.values()):
        rows = math.prod(groups(how, config)) if how in CUT else 1
        if tensor.shape[0] % rows:
            raise UserError(
                f"the tensor '{name}' has {tensor.shape[0]} rows; the model's heads need a multiple of {rows}"
            )


def _planned(name: str, parts: list[Part], dtype: DType) -> Planned:
    (_, tensor, _), how = parts[0]
    shape = tensor.shape[::-1] if how == "transposed" else tensor.shape
    if len(shape) < 2 or name.endswith(SINGLE) or not name.endswith(".weight"):
        kind = "F32"
    else:
        kind = "F16" if dtype == "q8_0" and shape[-1] % BLOCK else dtype.upper()
    stacked = name.endswith("_exps.weight")
    return Planned((len(parts), *shape) if stacked else tuple(shape), kind, parts)


def _write(
    path: Path, family: Family, metadata: Mapping[str, Any], planned: Mapping[str, Planned], config: Mapping[str, Any]
) -> None:
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, family.arch)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    try:
        for key, value in metadata.items():
            adders.get(type(value), writer.add_array)(key, value)
        for name, (shape, kind, _) in planned.items():
            number = gguf.GGMLQuantizationType[kind]
            block, size = gguf.GGML_QUANT_SIZES[number]
            writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // block * size, number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        for tensor in planned.values():
            writer.write_padding(out, out.tell())
            for part in tensor.parts:
                out.write(_encoded(part, tensor.kind, config).data)
        writer.write_padding(out, out.tell())
        out.flush()
        os.fsync(out.fileno())
    finally:
        writer.close()


def _encoded(part: Part, kind: str, config: Mapping[str, Any]) -> np.ndarray:
    gguf = gguf_package()
    name, tensor, read = part.source
    values = read()
    if values.shape != tensor.shape:
        raise UserError(f"the tensor '{name}' has the shape {values.shape}; expected {tensor.shape}")
    values = np.ascontiguousarray(to_gguf(values, part.how, config), np.float32)
    if kind == "F16" and max(values.max(), -values.min()) > LARGEST:
        raise UserError(f"the tensor '{name}' has values past float16's {LARGEST:,.0f}: write 'f32' or 'q8_0'")
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
