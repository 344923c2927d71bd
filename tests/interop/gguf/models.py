"""Tiny models of every family that GGUF is read and written for, and tokenizers for them."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxllm.interop.gguf.families import FAMILIES, Family
from jaxllm.interop.gguf.write import Source, write_gguf
from jaxllm.interop.published import Tensor

VOCABULARY, WIDTH, FFN, LAYERS, HEADS, KV_HEADS, POSITIONS, EXPERTS = 320, 64, 96, 2, 4, 2, 32, 3
"""The vocabulary is larger than the tokenizer's, as most models' are."""

BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}

DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}
GATED = {**DECODER, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 5e5}
GEMMA = {
    **GATED,
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GATED, "tie_word_embeddings": False},
    "mistral": {**GATED, "tie_word_embeddings": False, "sliding_window": 8},
    "mixtral": {**GATED, "tie_word_embeddings": False, "num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen2": {**GATED, "tie_word_embeddings": True},
    "qwen3": {**GATED, "head_dim": 24, "tie_word_embeddings": True},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {**GEMMA, "rope_local_base_freq": 20_000.0},
    "gpt2": {
        "n_embd": WIDTH,
        "n_inner": None,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        **DECODER,
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    },
    "phi": {
        **DECODER,
        "num_key_value_heads": HEADS,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    },
    "olmo2": {**GATED, "tie_word_embeddings": False},
}


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    """The `config.json` of a tiny model."""
    return {"model_type": model_type, "vocab_size": VOCABULARY, **CONFIGS[model_type], **changes}


def tensors_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that float16 holds, and so do they with one added, by their names in a Hugging Face folder."""
    family, layers = BY_MODEL_TYPE[config["model_type"]], config.get("num_hidden_layers", LAYERS)
    rng = np.random.default_rng(seed)
    weights = {}
    for module in family.modules:
        if module == family.head and config["tie_word_embeddings"]:
            continue
        for i in range(layers if "{i}" in module else 1):
            for e in range(config.get("num_local_experts", 0) if "{e}" in module else 1):
                name = module.format(i=i, e=e)
                weights[f"{name}.weight"] = shape = _shape(module, config)
                if _has_bias(family, module):
                    weights[f"{name}.bias"] = shape[-1:] if "c_" in module else shape[:1]
    return {name: rng.integers(-300, 300, shape).astype(np.float32) / 256 for name, shape in weights.items()}


def _shape(module: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    size = config.get("head_dim") or WIDTH // HEADS
    queries, keys = HEADS * size, config.get("num_key_value_heads", HEADS) * size
    shapes = {
        "q_proj": (queries, WIDTH),
        "k_proj": (keys, WIDTH),
        "v_proj": (keys, WIDTH),
        "o_proj": (WIDTH, queries),
        "self_attn.dense": (WIDTH, queries),
        "attention.dense": (WIDTH, WIDTH),
        "query_key_value": (3 * WIDTH, WIDTH),
        "c_attn": (WIDTH, 3 * WIDTH),
        "attn.c_proj": (WIDTH, WIDTH),
        "mlp.c_fc": (WIDTH, 4 * WIDTH),
        "mlp.c_proj": (4 * WIDTH, WIDTH),
        "wpe": (POSITIONS, WIDTH),
        "block_sparse_moe.gate": (EXPERTS, WIDTH),
    }
    found = next((shape for end, shape in shapes.items() if module.endswith(end)), None)
    if found:
        return found
    if module.endswith(("q_norm", "k_norm")):
        return (keys if "k_norm" in module else queries,) if config["model_type"] == "olmo2" else (size,)
    if module.endswith(("gate_proj", "up_proj", "fc1", "h_to_4h", "w1", "w3")) and "4h_to_h" not in module:
        return FFN, WIDTH
    if module.endswith(("down_proj", "fc2", "4h_to_h", "w2")):
        return WIDTH, FFN
    return (WIDTH,) if "norm" in module or "ln_" in module else (VOCABULARY, WIDTH)


def _has_bias(family: Family, module: str) -> bool:
    if family.model_type == "qwen2":
        return module.endswith(("q_proj", "k_proj", "v_proj"))
    alone = ("embed_in", "embed_out", "wte", "wpe", "embed_tokens")
    whole = family.model_type in ("gpt2", "gpt_neox", "phi") and not module.endswith(alone)
    return whole and not (module == "lm_head" and family.model_type == "gpt2")


def sources(weights: Mapping[str, np.ndarray]) -> list[Source]:
    """What `write_gguf` takes."""
    return [
        (name, Tensor(array.shape, str(array.dtype), str(array.dtype)), lambda array=array: array)
        for name, array in weights.items()
    ]


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    """A BPE such as GPT-2's, with two special tokens and one that is only added."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["for name in names:\n    print(name)\n"] * 9, trainer)
    model.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return model


def files_of(model: tokenizers.Tokenizer | None = None, **named: Any) -> dict[str, bytes]:
    """The files of a folder with that tokenizer, or with `byte_level`."""
    model = model or byte_level()
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", **named}
    return {"tokenizer.json": model.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def write(path: Path, model_type: str = "llama", dtype: Any = "f32", **changes: Any) -> dict[str, np.ndarray]:
    """Writes a tiny model and gives its weights."""
    config = config_of(model_type, **changes)
    weights = tensors_of(config)
    write_gguf(path, config, sources(weights), files_of(), dtype)
    return weights


def edited(path: Path, out: Path, change: Any) -> Path:
    """A copy of a file, made by the package `gguf`.

    Args:
        path: of the file.
        out: of the copy.
        change: is shown the metadata and the tensors (name to values and type), and changes them.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    change(metadata, tensors)
    writer = gguf.GGUFWriter(out, metadata.pop("general.architecture", "none"))
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for key, value in metadata.items():
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def bfloat16(array: np.ndarray) -> np.ndarray:
    """As bytes, in which GGUF's package wants it."""
    return array.astype(ml_dtypes.bfloat16).view(np.uint8)
