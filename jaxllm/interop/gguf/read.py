"""A GGUF file read as a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxllm.config import UserError
from jaxllm.interop.gguf.config import family_read, read_config
from jaxllm.interop.gguf.families import Family, tensor_names
from jaxllm.interop.gguf.header import Header, Stored, gguf_package, read_header
from jaxllm.interop.gguf.layout import CUT, from_gguf, groups, layout
from jaxllm.interop.gguf.rope import FREQS
from jaxllm.interop.gguf.tokenizer import special_token_ids, tokenizer_files
from jaxllm.interop.published import Published, Tensor

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types that are given as they are; all others as float32."""

BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

DERIVED = (FREQS, "rotary_emb.inv_freq", "attn_rot_embd.weight")
"""How tensors end that follow from the config."""


class Place(NamedTuple):
    """Where a tensor of the Hugging Face folder lies in the file."""

    name: str
    expert: int | None
    how: str | None


def open_gguf(path: str | Path) -> Published:
    """The model in the GGUF file `path`. Tensors that its family does not have keep their names in GGUF.

    Raises:
        UserError: it cannot be read, is damaged or cut short, lacks metadata or a tokenizer, or is of an architecture,
            a kind of tokenizer or a type of tensors that is not known here. The message says which are.
    """
    header = read_header(path)
    if header.whole("split.count", 1) > 1:
        parts = f"'{header.path}' is one of {header.whole('split.count')} parts"
        raise UserError(f"{parts}: join them first, with llama.cpp's llama-gguf-split --merge")
    family = family_read(header)
    config = read_config(header, family)
    files = tokenizer_files(header, header.whole(f"{family.arch}.context_length"))
    config |= special_token_ids(header)
    places = _places(header, family, config)
    tensors = {name: _described(header, place, config) for name, place in places.items()}

    def read(name: str) -> np.ndarray:
        place = places[name]
        with np.errstate(all="ignore"):  # of what is not finite, the caller may tell
            values = from_gguf(_values(header.tensors[place.name], place.expert), place.how, config)
        return np.array(values, order="C")  # a copy: no view of the file

    return Published(header.path, config, tensors, read, files)


def _places(header: Header, family: Family, config: Mapping[str, Any]) -> dict[str, Place]:
    layers = header.whole(f"{family.arch}.block_count")
    places = {}
    for module, (name, expert) in tensor_names(family, layers, config.get("num_local_experts", 0)).items():
        for suffix in (".weight", ".bias"):
            if name + suffix in header.tensors:
                places[module + suffix] = Place(name + suffix, expert, layout(family, module, suffix))
    used = {place.name for place in places.values()}
    others = (name for name in header.tensors if name not in used and not name.endswith(DERIVED))
    return places | {name: Place(name, None, None) for name in others}


def _described(header: Header, place: Place, config: Mapping[str, Any]) -> Tensor:
    stored, name = header.tensors[place.name], f"the tensor '{place.name}'"
    if stored.kind not in PLAIN and stored.kind not in BLOCKS:
        known = ", ".join((*PLAIN, *BLOCKS))
        raise UserError(f"'{header.path}': {name} is of the type {stored.kind}; the types read are {known}")
    shape = stored.shape
    if place.expert is not None:
        if len(shape) != 3 or place.expert >= shape[0]:
            experts = f"{config['num_local_experts']} experts"
            raise UserError(f"'{header.path}': {name} has the shape {shape}; expected three axes, first {experts}")
        shape = shape[1:]
    if place.how == "transposed":
        shape = shape[::-1]
    elif place.how in CUT:
        parts = groups(place.how, config)
        if shape[0] % np.prod(parts):
            raise UserError(
                f"'{header.path}': {name} has {shape[0]} rows; {parts[0]} heads need a multiple of {np.prod(parts)}"
            )
    dtype = "float32" if place.how == "one more" else PLAIN.get(stored.kind, "float32")
    return Tensor(shape, dtype, stored.kind)


def _values(stored: Stored, expert: int | None) -> np.ndarray:
    data = stored.data if expert is None else stored.data[expert]
    if stored.kind == "BF16":
        return data.view(ml_dtypes.bfloat16)
    if stored.kind in PLAIN:
        return data
    gguf = gguf_package()
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[stored.kind])
