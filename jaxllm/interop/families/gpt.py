"""GPT-2, GPT-NeoX (Pythia) and Phi: plain MLPs, LayerNorm and biases."""

from collections.abc import Sequence
from typing import Any

from jaxllm.config import TransformerConfig
from jaxllm.interop.families.family import Family
from jaxllm.interop.rules import Rule, fields
from jaxllm.interop.settings import ACTIVATION, PLAIN, Settings, rope_keys

GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "n_embd": "width",
    "n_layer": "layers",
    "n_head": "heads",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_eps",
}
NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "norm_eps",
}
QKV = "layers/attention/query/{0} layers/attention/key/{0} layers/attention/value/{0}"


def read_gpt2(settings: Settings) -> TransformerConfig:
    """Radford et al. 2019."""
    settings.require(scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True, add_cross_attention=False)
    width, heads = settings.whole("n_embd"), settings.whole("n_head")
    return TransformerConfig(
        **settings.take(GPT2_NAMES),
        kv_heads=heads,
        head_dim=width // heads,
        ffn=settings.whole("n_inner", 4 * width),
        norm="layer",
        mlp=settings.mlp("activation_function", PLAIN),
        positions="learned",
        attention_bias="all",
        mlp_bias=True,
        tied_embeddings=settings.flag("tie_word_embeddings", True),
        dropout=settings.number("resid_pdrop", 0.1),
        init_std=settings.number("initializer_range", 0.02),
    )


def write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_gpt2`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **fields(config, GPT2_NAMES),
        "n_inner": config.ffn,
        "activation_function": ACTIVATION[config.mlp],
        "tie_word_embeddings": config.tied_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "initializer_range": config.init_std,
    }


def gpt2_rules(config: TransformerConfig) -> Sequence[Rule]:
    """Its matrices have inputs as rows, unlike everybody else's."""
    layer = "transformer.h.{L}"
    return [
        Rule("transformer.wte.weight", "V D", "embedding/tokens"),
        Rule("transformer.wpe.weight", "P D", "embedding/positions"),
        *norm_rules(f"{layer}.ln_1", "layers/attention_norm"),
        Rule(f"{layer}.attn.c_attn.weight", "D (S N H)", QKV.format("kernel")),
        Rule(f"{layer}.attn.c_attn.bias", "(S N H)", QKV.format("bias")),
        Rule(f"{layer}.attn.c_proj.weight", "(N H) D", "layers/attention/output/kernel"),
        Rule(f"{layer}.attn.c_proj.bias", "D", "layers/attention/output/bias"),
        *norm_rules(f"{layer}.ln_2", "layers/mlp_norm"),
        Rule(f"{layer}.mlp.c_fc.weight", "D F", "layers/mlp/up/kernel"),
        Rule(f"{layer}.mlp.c_fc.bias", "F", "layers/mlp/up/bias"),
        Rule(f"{layer}.mlp.c_proj.weight", "F D", "layers/mlp/down/kernel"),
        Rule(f"{layer}.mlp.c_proj.bias", "D", "layers/mlp/down/bias"),
        *norm_rules("transformer.ln_f", "final_norm"),
        *(() if config.tied_embeddings else (Rule("lm_head.weight", "V D", "head/kernel"),)),
    ]


def norm_rules(theirs: str, ours: str) -> list[Rule]:
    """A LayerNorm."""
    return [Rule(f"{theirs}.weight", "D", f"{ours}/scale"), Rule(f"{theirs}.bias", "D", f"{ours}/bias")]


def linear_rules(theirs: str, ours: str, outputs: str, inputs: str) -> list[Rule]:
    """A linear map with a bias."""
    return [
        Rule(f"{theirs}.weight", f"{outputs} {inputs}", f"{ours}/kernel"),
        Rule(f"{theirs}.bias", outputs, f"{ours}/bias"),
    ]


def read_neox(settings: Settings) -> TransformerConfig:
    """GPT-NeoX (2204.06745)."""
    settings.require(attention_bias=True)
    heads = settings.whole("num_attention_heads")
    return TransformerConfig(
        **settings.take(NAMES),
        **settings.rope(0.25),
        kv_heads=heads,
        head_dim=settings.whole("hidden_size") // heads,
        norm="layer",
        mlp=settings.mlp("hidden_act", PLAIN),
        attention_bias="all",
        mlp_bias=True,
        parallel_residual=settings.flag("use_parallel_residual", True),
        tied_embeddings=settings.flag("tie_word_embeddings", False),
        dropout=settings.number("hidden_dropout", 0.0),
        init_std=settings.number("initializer_range", 0.02),
    )


def write_neox(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_neox`."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        **fields(config, NAMES),
        **rope_keys(config),
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction,
        "hidden_act": ACTIVATION[config.mlp],
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_dropout": config.dropout,
        "initializer_range": config.init_std,
    }


def neox_rules(config: TransformerConfig) -> Sequence[Rule]:
    """Queries, keys and values of one head stand together."""
    layer = "gpt_neox.layers.{L}"
    return [
        Rule("gpt_neox.embed_in.weight", "V D", "embedding/tokens"),
        *norm_rules(f"{layer}.input_layernorm", "layers/attention_norm"),
        Rule(f"{layer}.attention.query_key_value.weight", "(N S H) D", QKV.format("kernel")),
        Rule(f"{layer}.attention.query_key_value.bias", "(N S H)", QKV.format("bias")),
        Rule(f"{layer}.attention.dense.weight", "D (N H)", "layers/attention/output/kernel"),
        Rule(f"{layer}.attention.dense.bias", "D", "layers/attention/output/bias"),
        *norm_rules(f"{layer}.post_attention_layernorm", "layers/mlp_norm"),
        *linear_rules(f"{layer}.mlp.dense_h_to_4h", "layers/mlp/up", "F", "D"),
        *linear_rules(f"{layer}.mlp.dense_4h_to_h", "layers/mlp/down", "D", "F"),
        *norm_rules("gpt_neox.final_layer_norm", "final_norm"),
        *(() if config.tied_embeddings else (Rule("embed_out.weight", "V D", "head/kernel"),)),
    ]


def read_phi(settings: Settings) -> TransformerConfig:
    """Phi-1, 1.5 and 2 (2306.11644)."""
    settings.require(qk_layernorm=False)
    heads = settings.whole("num_attention_heads")
    return TransformerConfig(
        **settings.take(NAMES),
        **settings.rope(0.5),
        kv_heads=settings.whole("num_key_value_heads", heads),
        head_dim=settings.whole("hidden_size") // heads,
        norm="layer",
        mlp=settings.mlp("hidden_act", PLAIN),
        attention_bias="all",
        mlp_bias=True,
        head_bias=True,
        parallel_residual=True,
        shared_norm=True,
        tied_embeddings=settings.flag("tie_word_embeddings", False),
        dropout=settings.number("resid_pdrop", 0.0),
        init_std=settings.number("initializer_range", 0.02),
    )


def write_phi(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_phi`."""
    return {
        "architectures": ["PhiForCausalLM"],
        **fields(config, NAMES),
        **rope_keys(config),
        "partial_rotary_factor": config.rope_fraction,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": ACTIVATION[config.mlp],
        "tie_word_embeddings": config.tied_embeddings,
        "resid_pdrop": config.dropout,
        "initializer_range": config.init_std,
    }


def phi_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of Phi."""
    layer = "model.layers.{L}"
    return [
        Rule("model.embed_tokens.weight", "V D", "embedding/tokens"),
        *norm_rules(f"{layer}.input_layernorm", "layers/attention_norm"),
        *linear_rules(f"{layer}.self_attn.q_proj", "layers/attention/query", "(N H)", "D"),
        *linear_rules(f"{layer}.self_attn.k_proj", "layers/attention/key", "(K H)", "D"),
        *linear_rules(f"{layer}.self_attn.v_proj", "layers/attention/value", "(K H)", "D"),
        *linear_rules(f"{layer}.self_attn.dense", "layers/attention/output", "D", "(N H)"),
        *linear_rules(f"{layer}.mlp.fc1", "layers/mlp/up", "F", "D"),
        *linear_rules(f"{layer}.mlp.fc2", "layers/mlp/down", "D", "F"),
        *norm_rules("model.final_layernorm", "final_norm"),
        *(() if config.tied_embeddings else (Rule("lm_head.weight", "V D", "head/kernel"),)),
        Rule("lm_head.bias", "V", "head/bias"),
    ]


GPT2 = Family(
    model_type="gpt2",
    read=read_gpt2,
    write=write_gpt2,
    rules=gpt2_rules,
    prefix="transformer.",
    ignored=(r"\.attn\.(masked_)?bias$", r"^lm_head\.weight$"),
)
NEOX = Family(
    model_type="gpt_neox",
    read=read_neox,
    write=write_neox,
    rules=neox_rules,
    prefix="gpt_neox.",
    ignored=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
PHI = Family(
    model_type="phi",
    read=read_phi,
    write=write_phi,
    rules=phi_rules,
    prefix="model.",
    ignored=(r"rotary_emb\.inv_freq$",),
)
