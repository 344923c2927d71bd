"""Between the metadata of a GGUF file and the `config.json` of a Hugging Face folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.config import UserError
from jaxllm.interop.gguf.families import FAMILIES, Family, tensor_names
from jaxllm.interop.gguf.header import Header
from jaxllm.interop.gguf.rope import read_scaling, rope_parameters, scaling_metadata

LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the one Gemma that scales scores by width / heads in place of the size of a head; GGUF does not say it."""


def family_read(header: Header) -> Family:
    """The family of a file.

    Raises:
        UserError: it is none of those known here.
    """
    arch = header.text("general.architecture")
    known = {family.model_type: family for family in reversed(FAMILIES) if family.arch == arch}
    if not known:
        names = ", ".join(sorted({family.arch for family in FAMILIES}))
        raise UserError(f"'{header.path}': general.architecture is '{arch}'; those read are {names}")
    if arch == "llama":
        if header.whole("llama.expert_count", 0):
            return known["mixtral"]
        return known["mistral" if header.whole("llama.attention.sliding_window", 0) else "llama"]
    return next(iter(known.values()))


def family_written(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: GGUF is not written for its `model_type`.
    """
    found = next((family for family in FAMILIES if family.model_type == config.get("model_type")), None)
    if found is None:
        names = ", ".join(sorted(family.model_type for family in FAMILIES))
        raise UserError(f"model_type = {config.get('model_type')!r}: GGUF is written for {names}")
    return found


def read_config(header: Header, family: Family) -> dict[str, Any]:
    """What `config.json` would hold.

    Raises:
        UserError: metadata are missing or make no sense.
    """
    config: dict[str, Any] = {"architectures": [family.model_class], "model_type": family.model_type}
    config |= {name: allowed[0] for name, allowed in family.fixed.items()}
    readers: dict[type, Any] = {int: header.whole, float: header.number, bool: header.flag}
    for name, (key, kind, required) in family.fields.items():
        default, key = family.defaults.get(key), f"{family.arch}.{key}"
        if required or default is not None or key in header.metadata:
            least = {"least": 1} if kind is int and name != "sliding_window" else {}
            config[name] = readers[kind](key, default, **least)
    _bound_layers(header, family, config)
    names = tensor_names(family, 1, 1)
    embedding = header.tensors.get(f"{names[family.modules[0]][0]}.weight")
    if embedding is None:
        raise UserError(f"'{header.path}' has no tensor 'token_embd.weight': it holds no model, or a part of one")
    head = names.get(family.head, (None, None))[0]
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = f"{head}.weight" not in header.tensors
    config |= {name: tensor in header.tensors for name, tensor in family.biases.items()}
    if family.arch == "gpt2":
        config["n_inner"] = None if config["n_inner"] == 4 * config["n_embd"] else config["n_inner"]
    else:
        _read_attention(header, family, config)
    if family.sliding_period:
        _read_gemma(header, family, config)
    return config


def _bound_layers(header: Header, family: Family, config: Mapping[str, Any]) -> None:
    """Refuses more layers than there are tensors, of which a table of names would fill the memory."""
    layers = header.whole(f"{family.arch}.block_count")
    if layers > len(header.tensors):
        what = f"{len(header.tensors)} tensors, too few for {family.arch}.block_count = {layers}"
        raise UserError(f"'{header.path}' has {what}: it holds no model, or a part of one")
    experts = config.get("num_local_experts", 0)
    if experts > max(tensor.shape[0] for tensor in header.tensors.values()):
        raise UserError(f"'{header.path}' has no tensor of {family.arch}.expert_count = {experts} experts")


def _read_attention(header: Header, family: Family, config: dict[str, Any]) -> None:
    heads, arch = config["num_attention_heads"], family.arch
    if "num_key_value_heads" in family.fields:
        config.setdefault("num_key_value_heads", heads)
    size = header.whole(f"{arch}.attention.key_length", config["hidden_size"] // heads, least=1)
    if header.whole(f"{arch}.attention.value_length", size) != size:
        raise UserError(f"'{header.path}': {arch}.attention.value_length is not its key_length, {size}, as it must be")
    if "head_dim" in family.fields:
        config["head_dim"] = size
    dims = header.whole(f"{arch}.rope.dimension_count", size)
    if family.partial_rotary:
        config[family.partial_rotary] = dims / size
    elif dims != size:
        raise UserError(f"'{header.path}': {arch}.rope.dimension_count is {dims}; expected a head's size, {size}")
    theta = header.number(f"{arch}.rope.freq_base", family.defaults.get("rope.freq_base", 10_000.0))
    config["rotary_emb_base" if arch == "gptneox" else "rope_theta"] = theta
    config["rope_scaling"] = read_scaling(header, arch, dims, theta)


def _read_gemma(header: Header, family: Family, config: dict[str, Any]) -> None:
    layers, window = config["num_hidden_layers"], config.get("sliding_window") or None
    key = f"{family.arch}.attention.sliding_window_pattern"
    if isinstance(header.metadata.get(key), np.ndarray):
        slides = header.numbers(key)
    else:
        slides = _sliding(layers, header.whole(key, family.sliding_period, least=1))
    if len(slides) < layers:
        raise UserError(f"'{header.path}': attention.sliding_window_pattern has {len(slides)} of {layers} layers")
    config["sliding_window"] = window
    config["layer_types"] = _layer_types(slide and window is not None for slide in slides[:layers])
    config["query_pre_attn_scalar"] = _scalar(family, config)
    if family.arch == "gemma3":
        config["rope_local_base_freq"] = header.number("gemma3.rope.freq_base_swa", 10_000.0)


def _sliding(layers: int, period: int) -> list[bool]:
    return [bool((i + 1) % period) for i in range(layers)]


def _layer_types(slides: Any) -> list[str]:
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _scalar(family: Family, config: Mapping[str, Any]) -> int:
    if config["num_hidden_layers"] == LARGEST[family.arch]:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def write_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The metadata of a model, by their whole names.

    Raises:
        UserError: a field is missing, or says what GGUF cannot.
    """
    for name, allowed in family.fixed.items():
        if config.get(name) is not None and config[name] not in allowed:
            ones = " or ".join(map(repr, allowed))
            raise UserError(f"{name} = {config[name]!r}: a GGUF file of '{family.arch}' stands for {ones}")
    if family.arch == "gpt2":
        inner = config.get("n_inner") or 4 * (config.get("n_embd") or 0)
        config = {**config, "n_positions": config.get("n_positions") or config.get("n_ctx"), "n_inner": inner}
    metadata = {}
    for name, (key, kind, required) in family.fields.items():
        if config.get(name) is not None:
            metadata[f"{family.arch}.{key}"] = _checked(name, config[name], kind)
        elif required:
            raise UserError(f"the model's config has no '{name}', which a GGUF file must say")
    metadata[f"{family.arch}.vocab_size"] = _checked("vocab_size", config.get("vocab_size"), int)
    if family.arch != "gpt2":
        metadata |= _write_attention(config, family)
    if family.sliding_period:
        metadata |= _write_gemma(config, family)
    return metadata


def _checked(name: str, value: Any, kind: type) -> Any:
    holds = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not holds or (kind is int and not (name != "sliding_window") <= value < 2**32):
        expected = {int: "a whole number from 1 to 2^32 - 1", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"{name} = {value!r} in the model's config: expected {expected}")
    return kind(value)


def head_size(config: Mapping[str, Any]) -> int:
    """H of a model's config."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _write_attention(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    arch, size, rope = family.arch, head_size(config), rope_parameters(config)
    metadata = {f"{arch}.rope.freq_base": float(rope["rope_theta"]), **scaling_metadata(rope, arch)}
    if rope["rope_type"] == "llama3" and "self_attn.q_proj" not in family.layouts:
        raise UserError(f"rope_type = 'llama3': llama.cpp knows it for 'llama', and not for '{arch}'")
    if "head_dim" in family.fields:
        metadata |= {f"{arch}.attention.{part}_length": size for part in ("key", "value")}
    if "num_key_value_heads" in family.fields:
        metadata[f"{arch}.attention.head_count_kv"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    share = rope.get("partial_rotary_factor", config.get(family.partial_rotary or "partial_rotary_factor"))
    if share is None and family.partial_rotary:
        raise UserError(f"the model's config has no '{family.partial_rotary}', which a GGUF file must say")
    if share not in (None, 1) and not family.partial_rotary:
        raise UserError(f"partial_rotary_factor = {share}: a GGUF file of '{arch}' stands for 1")
    metadata[f"{arch}.rope.dimension_count"] = size if share is None else int(share * size)
    return metadata


def _write_gemma(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    arch, layers = family.arch, config["num_hidden_layers"]
    metadata: dict[str, Any] = {}
    config = {"head_dim": head_size(config), **config}
    scalar = config.get("query_pre_attn_scalar")
    if scalar is not None and scalar != _scalar(family, config):
        ones = f"{_scalar(family, config)} for a '{arch}' of {layers} layers"
        raise UserError(f"query_pre_attn_scalar = {scalar}: llama.cpp takes {ones}")
    plain = _sliding(layers, family.sliding_period or 1)
    types = config.get("layer_types") or _layer_types(
        _sliding(layers, config.get("sliding_window_pattern") or family.sliding_period or 1)
    )
    slides = [kind == "sliding_attention" and bool(config.get("sliding_window")) for kind in types]
    if slides != plain:
        metadata[f"{arch}.attention.sliding_window_pattern"] = slides
    if arch == "gemma3":
        local = rope_parameters(config, "sliding_attention")
        metadata["gemma3.rope.freq_base_swa"] = float(local["rope_theta"])
    return metadata
