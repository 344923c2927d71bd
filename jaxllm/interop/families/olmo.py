"""OLMo 2 (2501.00656): Llama with norms after the branches, and of all queries and keys at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxllm.config import TransformerConfig
from jaxllm.interop.families.llama import (
    attention_rules,
    family_like_llama,
    gated_rules,
    read_llama,
    write_llama,
)
from jaxllm.interop.rules import Rule
from jaxllm.interop.settings import Settings


def read_olmo2(settings: Settings) -> TransformerConfig:
    """What differs from Llama."""
    settings.require(mlp_bias=False)  # which transformers does not read there
    return replace(read_llama(settings), norm_place="branch", qk_norm="projection")


def write_olmo2(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_olmo2`."""
    return {**write_llama(config), "architectures": ["Olmo2ForCausalLM"]}


def olmo2_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of OLMo 2."""
    return [
        *attention_rules(config),
        *gated_rules(config),
        Rule("model.layers.{L}.post_attention_layernorm.weight", "D", "layers/attention_norm/scale"),
        Rule("model.layers.{L}.post_feedforward_layernorm.weight", "D", "layers/mlp_norm/scale"),
    ]


OLMO2 = family_like_llama(model_type="olmo2", read=read_olmo2, write=write_olmo2, rules=olmo2_rules)
