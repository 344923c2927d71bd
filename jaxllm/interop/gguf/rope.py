"""Rotary frequencies between `config.json` and GGUF, where Llama 3's scaling is a tensor of factors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.config import UserError
from jaxllm.interop.gguf.header import Header

FREQS = "rope_freqs.weight"
"""The tensor by which each frequency is divided."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every Llama that Meta published."""

YARN = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
"""Fields of YaRN's scaling that a file may leave out, and their metadata."""


def llama3_factors(dims: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """What Llama 3 divides the frequencies of `dims` rotated channels by: 1 for short waves, `factor` for long ones."""
    waves = 2 * math.pi * theta ** (np.arange(0, dims, 2) / dims)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def read_scaling(header: Header, arch: str, dims: int, theta: float) -> dict[str, Any] | None:
    """`rope_scaling` of `config.json`; none without any.

    Args:
        header: of the file.
        arch: before the metadata's names.
        dims: rotated channels of a head.
        theta: the base.

    Raises:
        UserError: it is of a kind that is not known here.
    """
    if FREQS in header.tensors:
        return _llama3(header, dims, theta)
    prefix = f"{arch}.rope.scaling."
    factor = header.number(f"{prefix}factor", header.number(f"{arch}.rope.scale_linear", 1.0))
    kind = header.text(f"{prefix}type", "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UserError(f"'{header.path}': {prefix}type is '{kind}'; 'none', 'linear' and 'yarn' are read")
    scaling = {"rope_type": "yarn", "factor": factor}
    scaling["original_max_position_embeddings"] = header.whole(f"{prefix}original_context_length")
    keys = {name: prefix + key for name, key in YARN.items()}
    return scaling | {name: header.number(key) for name, key in keys.items() if key in header.metadata}


def _llama3(header: Header, dims: int, theta: float) -> dict[str, Any] | None:
    stored = header.tensors[FREQS]
    if stored.kind != "F32" or stored.shape != (dims // 2,):
        what = f"{stored.kind} of shape {stored.shape}"
        raise UserError(f"'{header.path}': the tensor '{FREQS}' is {what}; expected F32 of shape ({dims // 2},)")
    factors = np.array(stored.data, np.float64)
    factor = float(str(stored.data[-1]))  # the shortest decimal
    if np.all(factors == 1):
        return None
    for scaling in ({"factor": factor, **LLAMA3}, _solved(dims, theta, factor, factors)):
        if scaling and np.allclose(llama3_factors(dims, theta, scaling), factors, rtol=1e-4):
            return {"rope_type": "llama3", **scaling}
    raise UserError(f"'{header.path}': the tensor '{FREQS}' holds factors that Llama 3's formula does not give")


def _solved(dims: int, theta: float, factor: float, factors: np.ndarray) -> dict[str, Any] | None:
    """The scaling from its factors, with a `low_freq_factor` of 1: only its ratio to the other two shows in them."""
    between = np.flatnonzero((factors > 1) & (factors < factor))
    if len(between) < 2:
        return None
    first, last = between[[0, -1]]
    short, long = 2 * math.pi * theta ** (between[[0, -1]] * 2 / dims)
    smooth = {i: (1 / factors[i] - 1 / factor) / (1 - 1 / factor) for i in (first, last)}
    slope = (smooth[first] - smooth[last]) / (1 / short - 1 / long)
    offset = slope / short - smooth[first]
    if offset <= 0:
        return None
    high = 1 + 1 / offset
    original = slope * (high - 1)
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": round(float(high), 3),
        "original_max_position_embeddings": round(original),
    }


def rope_parameters(config: Mapping[str, Any], layers: str = "full_attention") -> dict[str, Any]:
    """The rotary fields of a `config.json` of any age, flat: `rope_theta`, `rope_type` and what that needs.

    Args:
        config: the file's fields.
        layers: which kind of them, where they differ.
    """
    old = dict(config.get("rope_scaling") or {})
    if layers == "sliding_attention":
        old = {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    parameters = dict(config.get("rope_parameters") or {})
    parameters = dict(parameters.get(layers) or {}) if "full_attention" in parameters else parameters
    theta = config.get("rope_theta", config.get("rotary_emb_base", 10_000.0))
    parameters = {"rope_theta": theta} | old | parameters
    parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
    return parameters


def scaling_metadata(parameters: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The metadata that say how frequencies are scaled; Llama 3's scaling is in none, but in `FREQS`.

    Raises:
        UserError: GGUF has no such scaling, or a field of it is missing.
    """
    kind, prefix = parameters["rope_type"], f"{arch}.rope.scaling."
    if kind in ("default", "llama3"):
        return {}
    if kind not in ("linear", "yarn"):
        raise UserError(f"rope_type = {kind!r}: GGUF is written with 'default', 'linear', 'yarn' and 'llama3'")
    metadata = {f"{prefix}type": kind, f"{prefix}factor": float(needed(parameters, "factor"))}
    if kind == "yarn":
        metadata[f"{prefix}original_context_length"] = int(needed(parameters, "original_max_position_embeddings"))
        given = {key: parameters.get(name) for name, key in YARN.items()}
        metadata |= {prefix + key: float(value) for key, value in given.items() if value is not None}
    return metadata


def needed(parameters: Mapping[str, Any], name: str) -> Any:
    """A field of the scaling.

    Raises:
        UserError: it is missing.
    """
    if parameters.get(name) is None:
        raise UserError(f"the model's config has no '{name}' in its rope_parameters ({parameters['rope_type']})")
    return parameters[name]
