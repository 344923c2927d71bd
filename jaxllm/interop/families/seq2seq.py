"""T5 v1.0 and v1.1 (1910.10683) and BART (1910.13461): an encoder and a decoder that attends to it."""

from collections.abc import Sequence
from typing import Any

from jaxllm.config import TransformerConfig, UserError
from jaxllm.interop.families.family import Family
from jaxllm.interop.families.gpt import linear_rules, norm_rules
from jaxllm.interop.rules import Rule, fields
from jaxllm.interop.settings import ACTIVATION, PLAIN, Settings

T5_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "width",
    "d_kv": "head_dim",
    "d_ff": "ffn",
    "num_heads": "heads",
    "relative_attention_num_buckets": "relative_buckets",
    "layer_norm_epsilon": "norm_eps",
}
BART_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "width",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "layers",
    "decoder_attention_heads": "heads",
    "decoder_ffn_dim": "ffn",
    "max_position_embeddings": "max_positions",
}
T5_MLPS = {"relu": "relu", "gelu": "gelu_erf", "gated-gelu": "geglu", "gated-silu": "swiglu"}


def read_t5(settings: Settings) -> TransformerConfig:
    """Both versions; scores are not divided by the root of the head's size, and v1.0 divides tied logits instead.

    Transformers 5 writes that weights are tied even of v1.1, of which only the head's tensor tells that they are not.
    """
    tied = settings.flag("tie_word_embeddings", True)
    scaled = settings.flag("scale_decoder_outputs", tied)
    tied = tied and (scaled or not settings.has("lm_head."))
    return TransformerConfig(
        architecture="encoder_decoder",
        **settings.take(T5_NAMES),
        encoder_layers=settings.whole("num_layers"),
        layers=settings.whole("num_decoder_layers", settings.whole("num_layers")),
        kv_heads=settings.whole("num_heads"),
        max_positions=settings.whole("n_positions", 512),
        positions="relative",
        relative_distance=settings.whole("relative_attention_max_distance", 128),
        mlp=settings.mlp("feed_forward_proj", T5_MLPS, default="relu"),
        attention_scale=1.0,
        tied_embeddings=tied,
        logit_scale=settings.whole("d_model") ** -0.5 if scaled else 1.0,
        start_token=settings.whole("decoder_start_token_id", settings.whole("pad_token_id", 0, least=0), least=0),
        dropout=settings.number("dropout_rate", 0.1),
    )


def write_t5(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_t5`."""
    names = {ours: theirs for theirs, ours in T5_MLPS.items()}
    if config.mlp not in names:
        raise UserError(f"mlp = {config.mlp!r}")
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        **fields(config, T5_NAMES),
        "num_layers": config.encoder_layers or config.layers,
        "num_decoder_layers": config.layers,
        "n_positions": config.max_positions,
        "relative_attention_max_distance": config.relative_distance,
        "feed_forward_proj": names[config.mlp],
        "tie_word_embeddings": config.tied_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "decoder_start_token_id": config.start_token,
        "dropout_rate": config.dropout,
    }


def t5_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of T5; its first layers hold the sums for distances."""
    rules = [Rule("shared.weight", "V D", "embedding/tokens")]
    for stack, prefix, last in (("encoder", "encoder/", 1), ("decoder", "", 2)):
        layer = f"{stack}.block.{{L}}.layer"
        first = f"{stack}.block.0.layer.0.SelfAttention"
        rules.append(Rule(f"{first}.relative_attention_bias.weight", "R N", f"{prefix}relative/buckets"))
        rules += _t5_attention(f"{layer}.0", "SelfAttention", f"{prefix}layers/attention")
        if last == 2:
            rules += _t5_attention(f"{layer}.1", "EncDecAttention", "layers/cross_attention")
        parts = (("wi_0", "gate"), ("wi_1", "up")) if config.mlp in ("geglu", "swiglu") else (("wi", "up"),)
        mlp = f"{layer}.{last}.DenseReluDense"
        rules += [Rule(f"{mlp}.{theirs}.weight", "F D", f"{prefix}layers/mlp/{ours}/kernel") for theirs, ours in parts]
        rules += [
            Rule(f"{mlp}.wo.weight", "D F", f"{prefix}layers/mlp/down/kernel"),
            Rule(f"{layer}.{last}.layer_norm.weight", "D", f"{prefix}layers/mlp_norm/scale"),
            Rule(f"{stack}.final_layer_norm.weight", "D", f"{prefix}final_norm/scale"),
        ]
    return rules if config.tied_embeddings else [*rules, Rule("lm_head.weight", "V D", "head/kernel")]


def _t5_attention(layer: str, name: str, ours: str) -> list[Rule]:
    rules = [
        Rule(f"{layer}.{name}.{theirs}.weight", f"({heads} H) D", f"{ours}/{part}/kernel")
        for theirs, part, heads in (("q", "query", "N"), ("k", "key", "K"), ("v", "value", "K"))
    ]
    return [
        *rules,
        Rule(f"{layer}.{name}.o.weight", "D (N H)", f"{ours}/output/kernel"),
        Rule(f"{layer}.layer_norm.weight", "D", f"{ours}_norm/scale"),
    ]


def read_bart(settings: Settings) -> TransformerConfig:
    """BART; both stacks are of the same shape."""
    for part in ("attention_heads", "ffn_dim"):
        settings.require(**{f"encoder_{part}": settings[f"decoder_{part}"]})
    settings.require(normalize_before=False, add_final_layer_norm=False, normalize_embedding=True)
    settings.require(tie_word_embeddings=True)  # else the stacks have embeddings of their own
    heads, width = settings.whole("decoder_attention_heads"), settings.whole("d_model")
    return TransformerConfig(
        architecture="encoder_decoder",
        **settings.take(BART_NAMES),
        kv_heads=heads,
        head_dim=width // heads,
        position_offset=2,
        norm="layer",
        norm_place="post",
        embedding_norm=True,
        mlp=settings.mlp("activation_function", PLAIN),
        positions="learned",
        attention_bias="all",
        mlp_bias=True,
        head_bias=settings.has("final_logits_bias"),
        embedding_scale=settings.flag("scale_embedding", False),
        start_token=settings.whole("decoder_start_token_id", 2, least=0),
        dropout=settings.number("dropout", 0.1),
        init_std=settings.number("init_std", 0.02),
    )


def write_bart(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_bart`."""
    return {
        "architectures": ["BartForConditionalGeneration"],
        "is_encoder_decoder": True,
        **fields(config, BART_NAMES),
        "encoder_layers": config.encoder_layers or config.layers,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ffn,
        "activation_function": ACTIVATION[config.mlp],
        "scale_embedding": config.embedding_scale,
        "tie_word_embeddings": config.tied_embeddings,
        "decoder_start_token_id": config.start_token,
        "dropout": config.dropout,
        "init_std": config.init_std,
    }


def bart_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of BART."""
    rules = [Rule("model.shared.weight", "V D", "embedding/tokens")]
    for stack, prefix in (("encoder", "encoder/"), ("decoder", "")):
        layer, own = f"model.{stack}.layers.{{L}}", f"{prefix}layers"
        rules.append(Rule(f"model.{stack}.embed_positions.weight", "P D", f"{prefix}embedding/positions"))
        rules += norm_rules(f"model.{stack}.layernorm_embedding", f"{prefix}embedding/norm")
        rules += _bart_attention(f"{layer}.self_attn", f"{own}/attention")
        if stack == "decoder":
            rules += _bart_attention(f"{layer}.encoder_attn", f"{own}/cross_attention")
        rules += linear_rules(f"{layer}.fc1", f"{own}/mlp/up", "F", "D")
        rules += linear_rules(f"{layer}.fc2", f"{own}/mlp/down", "D", "F")
        rules += norm_rules(f"{layer}.final_layer_norm", f"{own}/mlp_norm")
    if config.head_bias:
        rules.append(Rule("final_logits_bias", "1 V", "head/bias"))
    return rules


def _bart_attention(theirs: str, ours: str) -> list[Rule]:
    return [
        *linear_rules(f"{theirs}.q_proj", f"{ours}/query", "(N H)", "D"),
        *linear_rules(f"{theirs}.k_proj", f"{ours}/key", "(K H)", "D"),
        *linear_rules(f"{theirs}.v_proj", f"{ours}/value", "(K H)", "D"),
        *linear_rules(f"{theirs}.out_proj", f"{ours}/output", "D", "(N H)"),
        *norm_rules(f"{theirs}_layer_norm", f"{ours}_norm"),
    ]


T5 = Family(
    model_type="t5",
    read=read_t5,
    write=write_t5,
    rules=t5_rules,
    ignored=(
        r"^(encoder|decoder)\.embed_tokens\.weight$",
        r"^lm_head\.weight$",
        r"EncDecAttention\.relative_attention",
    ),
)
BART = Family(
    model_type="bart",
    read=read_bart,
    write=write_bart,
    rules=bart_rules,
    prefix="model.",
    ignored=(r"^(model\.)?(encoder|decoder)\.embed_tokens\.weight$", r"^lm_head\.weight$"),
)
