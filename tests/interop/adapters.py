"""Adapters that PEFT makes of the tiny models of the fixtures; their tensors are drawn, and not stored."""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import MeshConfig, RunConfig, TransformerConfig
from jaxllm.interop.convert import Conversion, load, plan_import
from jaxllm.interop.verify import Inputs, ours
from jaxllm.models.adapters import linear_modules, virtual_tokens
from jaxllm.peft.merge import folded, magnitudes
from jaxllm.sharding.mesh import make_mesh
from tests.interop.tiny import published


class Case(NamedTuple):
    """One adapter."""

    base: str
    """The fixture of its base."""
    kind: str
    """The name of PEFT's configuration."""
    settings: dict[str, Any]


LORA = {"r": 4, "lora_alpha": 6}
PATTERNS = {
    "r": 3,
    "lora_alpha": 5,
    "rank_pattern": {"q_proj": 6, "model.layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"layers.0.self_attn.o_proj": 11},
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "llama_qv": Case("llama", "LoraConfig", {**LORA, "target_modules": ["q_proj", "v_proj"]}),
    "llama_all": Case("llama", "LoraConfig", {**PATTERNS, "target_modules": ALL}),
    "llama_stabilised": Case("llama", "LoraConfig", {**PATTERNS, "target_modules": ALL, "use_rslora": True}),
    "llama_dora": Case(
        "llama",
        "LoraConfig",
        {**LORA, "target_modules": ["q_proj", "o_proj", "down_proj"], "use_dora": True, "layers_to_transform": [1]},
    ),
    "llama_adalora": Case(
        "llama",
        "AdaLoraConfig",
        {"init_r": 5, "lora_alpha": 9, "total_step": 9, "target_modules": ["q_proj", "v_proj"]},
    ),
    "gpt2_fused": Case("gpt2", "LoraConfig", {**LORA, "target_modules": ["c_attn", "mlp.c_proj"]}),
    "gpt2_dora": Case("gpt2", "LoraConfig", {**LORA, "target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    "neox_fused": Case("neox", "LoraConfig", {**LORA, "target_modules": r".*\.(query_key_value|dense_4h_to_h)"}),
    "t5": Case("t5", "LoraConfig", {**LORA, "target_modules": ["q", "EncDecAttention.o", "wo"]}),
    "bart": Case("bart", "LoraConfig", {**LORA, "target_modules": ["q_proj", "v_proj", "fc1"]}),
    "bert": Case("bert", "LoraConfig", {**LORA, "target_modules": ["query", "intermediate.dense"]}),
    "llama_prompt": Case("llama", "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "gemma2_prompt": Case("gemma2", "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "llama_prefix": Case("llama", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
}
"""By the names of their fixtures."""

FURTHER = {
    "qwen3_all": Case("qwen3", "LoraConfig", {**PATTERNS, "target_modules": ALL}),
    "qwen3_dora": Case("qwen3", "LoraConfig", {**LORA, "target_modules": ALL, "use_dora": True, "use_rslora": True}),
    "mistral": Case("mistral", "LoraConfig", {**LORA, "target_modules": ["q_proj", "v_proj"]}),
    "mixtral": Case("mixtral", "LoraConfig", {**LORA, "target_modules": ["q_proj", "v_proj"]}),
    "gemma3": Case("gemma3", "LoraConfig", {**LORA, "target_modules": ALL}),
    "phi": Case("phi", "LoraConfig", {**LORA, "target_modules": ["q_proj", "dense", "fc1"]}),
    "olmo2": Case("olmo2", "LoraConfig", {**LORA, "target_modules": ALL}),
    "neox_dora": Case("neox", "LoraConfig", {**LORA, "target_modules": ["query_key_value"], "use_dora": True}),
    "roberta": Case("roberta_masked", "LoraConfig", {**LORA, "target_modules": ["query", "attention.output.dense"]}),
    "gpt2_prompt": Case("gpt2", "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "gemma3_prompt": Case("gemma3", "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "gpt2_prefix": Case("gpt2", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "neox_prefix": Case("neox", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "qwen3_prefix": Case("qwen3", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "gemma2_prefix": Case("gemma2", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "gemma3_prefix": Case("gemma3", "PrefixTuningConfig", {"num_virtual_tokens": 3}),
}
"""Those that `tools/check_peft.py` compares too."""


def drawn(name: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor of an adapter, whose update is about as large as what it updates."""
    centre = name.endswith("magnitude_vector")
    frozen = np.random.RandomState(zlib.crc32(name.encode()))
    return (centre + 0.3 * frozen.standard_normal(shape)).astype(np.float32)


@functools.cache
def base_of(name: str) -> tuple[Conversion, Tree]:
    """The model of a fixture, and its parameters."""
    model = published(name)
    conversion = plan_import(model)
    return conversion, load(model, conversion, make_mesh(MeshConfig(), jax.devices()[:1]), "float32")


def norms_in(model: TransformerConfig, base: Tree) -> Callable[[str], np.ndarray]:
    """Of the columns of a base's kernels."""
    kernels = flatten(base)

    def norms(module):
        kernel = kernels[f"{module}/kernel"]
        return np.asarray(magnitudes(linear_modules(model)[module], kernel)).reshape(len(kernel), -1)

    return norms


def logits(config: RunConfig, leaves: Mapping[str, np.ndarray], base: Tree, given: Inputs) -> np.ndarray:
    """Those of the real tokens, by the model with an adapter."""
    U = virtual_tokens(config.tuning)
    tokens, real = given.tokens_BT, given.real_BT
    learned = np.broadcast_to(config.model.vocab_size + np.arange(U, dtype=np.int32), (len(tokens), U))
    given = Inputs(
        np.concatenate([learned, tokens], axis=1), np.concatenate([learned > 0, real], axis=1), given.written_BT
    )
    return ours(config.model, folded(config, nest(dict(leaves)), base), given)[:, -tokens.shape[1] :]
