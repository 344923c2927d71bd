"""Gemma 2 (2408.00118) and 3 (2503.19786), text only."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxllm.config import TransformerConfig
from jaxllm.interop.families.llama import (
    LAYER_TYPES,
    attention_rules,
    family_like_llama,
    gated_rules,
    read_llama,
    with_layer_types,
    write_llama,
)
from jaxllm.interop.rules import Rule
from jaxllm.interop.settings import GATED, Settings, rope_keys
from jaxllm.models.table import windowed

EVERY = {"gemma2": 2, "gemma3_text": 6}
"""The last of so many layers has no window, unless the configuration says otherwise."""


def read_gemma(settings: Settings) -> TransformerConfig:
    """Both; the third has norms of queries and keys, and two rotations, in the place of soft-caps."""
    settings.require(use_bidirectional_attention=False, mlp_bias=False)
    is_third = settings["model_type"] == "gemma3_text"
    caps = (None, None) if is_third else (50.0, 30.0)  # where the keys are left out; null is none
    values = {"hidden_act": settings["hidden_activation"], "tie_word_embeddings": True, **settings.values}
    config = read_llama(Settings(values, settings.where, settings.tensors))
    every = settings.whole("_sliding_window_pattern", EVERY[settings["model_type"]], least=2)
    config = replace(
        config,
        mlp=settings.mlp("hidden_activation", GATED),
        norm_place="both",
        zero_centred_norms=True,
        embedding_scale=True,
        attention_scale=settings.number("query_pre_attn_scalar", above=0) ** -0.5,
        attention_softcap=settings.values.get("attn_logit_softcapping", caps[0]),
        logit_softcap=settings.values.get("final_logit_softcapping", caps[1]),
        sliding_window=settings.whole("sliding_window"),
        global_every=settings.whole("sliding_window_pattern", every, least=2),
        qk_norm="head" if is_third else "none",
    )
    return with_layer_types(settings, replace(config, **_rotations(settings)) if is_third else config)


def _rotations(settings: Settings) -> dict[str, Any]:
    """Of layers without a window, and of those with one."""
    kinds = settings.inner("rope_parameters")
    if "full_attention" in kinds.values:
        everywhere = kinds.inner("full_attention")
        return {
            "rope_theta": everywhere.number("rope_theta"),
            "rope_scaling": settings.scaling(everywhere),
            "local_rope_theta": kinds.inner("sliding_attention").number("rope_theta"),
        }
    return {
        "rope_theta": settings.number("rope_theta", 1_000_000.0),
        "local_rope_theta": settings.number("rope_local_base_freq", 10_000.0),
    }


def write_gemma(model_type: str, config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_gemma`."""
    written = write_llama(config)
    name = {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}[model_type]
    written |= {
        "architectures": [name],
        "hidden_activation": written["hidden_act"],
        "query_pre_attn_scalar": _whole(config.attention_scale or config.head_dim**-0.5),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.sliding_window,
        "layer_types": [LAYER_TYPES[has] for has in windowed(config, config.layers)],
    }
    if model_type == "gemma3_text":
        written |= {
            **rope_keys(config),
            "rope_local_base_freq": config.local_rope_theta,
            "sliding_window_pattern": config.global_every,
        }
    return written


def _whole(scale: float) -> int | float:
    """The number of which `scale` is the inverse root; they write whole ones."""
    exact = scale**-2
    return round(exact) if round(exact) ** -0.5 == scale else exact


def gemma_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of both."""
    return [
        *attention_rules(config),
        Rule("model.layers.{L}.input_layernorm.weight", "D", "layers/attention_norm/scale"),
        Rule("model.layers.{L}.post_attention_layernorm.weight", "D", "layers/attention_post_norm/scale"),
        Rule("model.layers.{L}.pre_feedforward_layernorm.weight", "D", "layers/mlp_norm/scale"),
        Rule("model.layers.{L}.post_feedforward_layernorm.weight", "D", "layers/mlp_post_norm/scale"),
        *gated_rules(config),
    ]


GEMMA2, GEMMA3 = (
    family_like_llama(model_type=name, read=read_gemma, write=functools.partial(write_gemma, name), rules=gemma_rules)
    for name in EVERY
)
