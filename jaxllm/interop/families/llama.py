"""Llama and what differs from it by a few fields: Mistral, Qwen 2 and 3, Mixtral."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxllm.config import TransformerConfig
from jaxllm.interop.families.family import Family
from jaxllm.interop.rules import Rule, fields
from jaxllm.interop.settings import ACTIVATION, GATED, Settings, rope_keys
from jaxllm.models.table import windowed

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
}
IGNORED = (r"rotary_emb\.inv_freq$", r"^lm_head\.weight$")
LAYER_TYPES = {True: "sliding_attention", False: "full_attention"}


def read_llama(settings: Settings) -> TransformerConfig:
    """Llama's own, and what all have in common."""
    settings.require(pretraining_tp=1, quantization_config=None)
    heads = settings.whole("num_attention_heads")
    return TransformerConfig(
        **settings.take(NAMES),
        **settings.rope(),
        kv_heads=settings.whole("num_key_value_heads", heads),
        head_dim=settings.whole("head_dim", settings.whole("hidden_size") // heads),
        mlp=settings.mlp("hidden_act", GATED),
        attention_bias="all" if settings.flag("attention_bias", False) else "none",
        mlp_bias=settings.flag("mlp_bias", False),
        tied_embeddings=settings.flag("tie_word_embeddings", False),
        init_std=settings.number("initializer_range", 0.02),
    )


def write_llama(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_llama`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        **fields(config, NAMES),
        **rope_keys(config),
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATION[config.mlp],
        "attention_bias": config.attention_bias == "all",
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
    }


def attention_rules(config: TransformerConfig) -> list[Rule]:
    """Embedding, attention, norms before branches, and head."""
    rules = [Rule("model.embed_tokens.weight", "V D", "embedding/tokens")]
    for theirs, ours, heads in (("q", "query", "N"), ("k", "key", "K"), ("v", "value", "K")):
        name = f"model.layers.{{L}}.self_attn.{theirs}_proj"
        rules.append(Rule(f"{name}.weight", f"({heads} H) D", f"layers/attention/{ours}/kernel"))
        if config.attention_bias != "none":
            rules.append(Rule(f"{name}.bias", f"({heads} H)", f"layers/attention/{ours}/bias"))
    rules.append(Rule("model.layers.{L}.self_attn.o_proj.weight", "D (N H)", "layers/attention/output/kernel"))
    if config.attention_bias == "all":
        rules.append(Rule("model.layers.{L}.self_attn.o_proj.bias", "D", "layers/attention/output/bias"))
    for theirs, ours, heads in (("q", "query", "N"), ("k", "key", "K")):
        name, path = f"model.layers.{{L}}.self_attn.{theirs}_norm.weight", f"layers/attention/{ours}_norm/scale"
        if config.qk_norm != "none":
            rules.append(Rule(name, "H" if config.qk_norm == "head" else f"({heads} H)", path))
    rules.append(Rule("model.norm.weight", "D", "final_norm/scale"))
    return rules if config.tied_embeddings else [*rules, Rule("lm_head.weight", "V D", "head/kernel")]


def gated_rules(config: TransformerConfig) -> list[Rule]:
    """A gated MLP."""
    rules = []
    for part, axes, size in (("gate", "F D", "F"), ("up", "F D", "F"), ("down", "D F", "D")):
        rules.append(Rule(f"model.layers.{{L}}.mlp.{part}_proj.weight", axes, f"layers/mlp/{part}/kernel"))
        if config.mlp_bias:
            rules.append(Rule(f"model.layers.{{L}}.mlp.{part}_proj.bias", size, f"layers/mlp/{part}/bias"))
    return rules


PRE_NORMS = [
    Rule("model.layers.{L}.input_layernorm.weight", "D", "layers/attention_norm/scale"),
    Rule("model.layers.{L}.post_attention_layernorm.weight", "D", "layers/mlp_norm/scale"),
]


def llama_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of Llama, Mistral and Qwen."""
    return [*attention_rules(config), *PRE_NORMS, *gated_rules(config)]


def with_layer_types(settings: Settings, config: TransformerConfig) -> TransformerConfig:
    """`config`, if `layer_types` is left out or says of every layer what it says.

    Raises:
        UserError: other layers have a window.
    """
    listed = settings.get("layer_types")
    if listed is None:
        return config
    types = [LAYER_TYPES[has] for has in windowed(config, min(config.layers, len(settings.tensors)))]
    if listed != types:
        raise settings.refuse("layer_types", f"only {', '.join(types[: config.global_every or 1])} and so on would do")
    return config


def read_mistral(settings: Settings) -> TransformerConfig:
    """Llama with a window in every layer: of 4,096 tokens where none is named, and none where it is null."""
    settings.require(attention_bias=False, mlp_bias=False)  # which transformers does not read there
    window = settings.values.get("sliding_window", None if settings["model_type"] == "mixtral" else 4096)
    return with_layer_types(settings, replace(read_llama(settings), sliding_window=window))


def write_mistral(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_mistral`."""
    written = {**write_llama(config), "sliding_window": config.sliding_window}
    return {**written, "architectures": ["MistralForCausalLM"]}


def read_qwen(settings: Settings) -> TransformerConfig:
    """Qwen 2: biases on queries, keys and values; Qwen 3 has norms in their place."""
    settings.require(mlp_bias=False)  # which transformers does not read there
    window = settings.values.get("sliding_window", 4096) if settings.flag("use_sliding_window", False) else None
    without = settings.whole("max_window_layers", 28, least=0)
    if window is not None and 0 < without < settings.whole("num_hidden_layers"):
        raise settings.refuse("max_window_layers", "a window in some of the last layers only is not supported")
    config = replace(read_llama(settings), sliding_window=None if without else window)
    is_third = settings["model_type"] == "qwen3"
    config = replace(config, qk_norm="head") if is_third else replace(config, attention_bias="qkv")
    return with_layer_types(settings, config)


def write_qwen(model_type: str, config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_qwen`."""
    window = {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
    name = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
    return {**write_llama(config), **window, "max_window_layers": 0, "architectures": [name]}


def read_mixtral(settings: Settings) -> TransformerConfig:
    """Mistral with experts."""
    return replace(
        read_mistral(settings),
        experts=settings.whole("num_local_experts"),
        experts_per_token=settings.whole("num_experts_per_tok"),
        router_loss=settings.number("router_aux_loss_coef", 0.001),
    )


def write_mixtral(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_mixtral`."""
    return {
        **write_mistral(config),
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.router_loss,
    }


def mixtral_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of Mixtral."""
    experts = "model.layers.{L}.block_sparse_moe"
    return [
        *attention_rules(config),
        *PRE_NORMS,
        Rule(f"{experts}.gate.weight", "J D", "layers/mlp/router/kernel"),
        Rule(f"{experts}.experts.{{E}}.w1.weight", "M D", "layers/mlp/gate/kernel"),
        Rule(f"{experts}.experts.{{E}}.w3.weight", "M D", "layers/mlp/up/kernel"),
        Rule(f"{experts}.experts.{{E}}.w2.weight", "D M", "layers/mlp/down/kernel"),
    ]


family_like_llama = functools.partial(Family, prefix="model.", ignored=IGNORED)
"""A family whose names are Llama's."""

LLAMA = family_like_llama(model_type="llama", read=read_llama, write=write_llama, rules=llama_rules)
MISTRAL = family_like_llama(model_type="mistral", read=read_mistral, write=write_mistral, rules=llama_rules)
MIXTRAL = family_like_llama(model_type="mixtral", read=read_mixtral, write=write_mixtral, rules=mixtral_rules)
QWEN2, QWEN3 = (
    family_like_llama(model_type=name, read=read_qwen, write=functools.partial(write_qwen, name), rules=llama_rules)
    for name in ("qwen2", "qwen3")
)
