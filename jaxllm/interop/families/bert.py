"""BERT (1810.04805), which MiniLM is too, and RoBERTa (1907.11692)."""

from collections.abc import Sequence
from typing import Any

from jaxllm.config import TransformerConfig, UserError
from jaxllm.interop.families.family import Family
from jaxllm.interop.families.gpt import linear_rules, norm_rules
from jaxllm.interop.rules import Rule, fields
from jaxllm.interop.settings import ACTIVATION, PLAIN, Settings

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
}
OFFSET = {"bert": 0, "roberta": 2}
"""Rows of the position table before that of the first token."""

OTHER_HEADS = ("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering")

HEADS = {"bert": "cls.predictions", "roberta": "lm_head"}


def read_bert(settings: Settings) -> TransformerConfig:
    """Either, with those heads that there are tensors of."""
    settings.require(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    settings.require(tie_word_embeddings=True)
    kind, heads, width = settings["model_type"], settings.whole("num_attention_heads"), settings.whole("hidden_size")
    if kind == "roberta":
        settings.require(pad_token_id=OFFSET[kind] - 1)  # from which transformers counts positions
    if any(head in str(settings.get("architectures", "")) for head in OTHER_HEADS):
        raise settings.refuse("architectures", "heads over the whole text alone are supported")
    has_head = settings.has(f"{HEADS[kind]}.")
    labels = 0
    if settings.has("classifier."):
        labels = len(settings.inner("id2label").values) or settings.whole("num_labels", 2)
    if labels and kind == "bert" and not settings.has("pooler."):
        raise UserError(f"{settings.where}: a classifier of BERT reads its pooler, and there is none")
    return TransformerConfig(
        architecture="encoder",
        **settings.take(NAMES),
        max_positions=settings.whole("max_position_embeddings", least=1 + OFFSET[kind]) - OFFSET[kind],
        position_offset=OFFSET[kind],
        kv_heads=heads,
        head_dim=width // heads,
        norm="layer",
        norm_place="post",
        embedding_norm=True,
        mlp=settings.mlp("hidden_act", PLAIN),
        positions="learned",
        attention_bias="all",
        mlp_bias=True,
        head_transform=has_head,
        head_bias=has_head,
        pooler=settings.has("pooler.") or (kind == "roberta" and labels > 0),
        labels=labels,
        dropout=settings.number("hidden_dropout_prob", 0.1),
        init_std=settings.number("initializer_range", 0.02),
    )


def write_bert(kind: str, config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_bert`."""
    name = {"bert": "Bert", "roberta": "Roberta"}[kind]
    head = "ForSequenceClassification" if config.labels else "ForMaskedLM" if config.head_transform else "Model"
    labels = {str(i): f"LABEL_{i}" for i in range(config.labels)}
    return {
        "architectures": [name + head],
        **fields(config, NAMES),
        "max_position_embeddings": config.max_positions + config.position_offset,
        "hidden_act": ACTIVATION[config.mlp],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "initializer_range": config.init_std,
        **({"pad_token_id": config.position_offset - 1} if kind == "roberta" else {}),
        **({"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}} if labels else {}),
    }


def encoder_rules(kind: str, config: TransformerConfig) -> list[Rule]:
    """Embeddings and layers."""
    tables, layer = f"{kind}.embeddings", f"{kind}.encoder.layer.{{L}}"
    return [
        Rule(f"{tables}.word_embeddings.weight", "V D", "embedding/tokens"),
        Rule(f"{tables}.position_embeddings.weight", "P D", "embedding/positions"),
        Rule(f"{tables}.token_type_embeddings.weight", "Y D", "embedding/types"),
        *norm_rules(f"{tables}.LayerNorm", "embedding/norm"),
        *linear_rules(f"{layer}.attention.self.query", "layers/attention/query", "(N H)", "D"),
        *linear_rules(f"{layer}.attention.self.key", "layers/attention/key", "(K H)", "D"),
        *linear_rules(f"{layer}.attention.self.value", "layers/attention/value", "(K H)", "D"),
        *linear_rules(f"{layer}.attention.output.dense", "layers/attention/output", "D", "(N H)"),
        *norm_rules(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *linear_rules(f"{layer}.intermediate.dense", "layers/mlp/up", "F", "D"),
        *linear_rules(f"{layer}.output.dense", "layers/mlp/down", "D", "F"),
        *norm_rules(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    ]


def bert_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of BERT."""
    rules = encoder_rules("bert", config)
    if config.pooler:
        rules += linear_rules("bert.pooler.dense", "pooler", "W", "D")
    if config.labels:
        rules += linear_rules("classifier", "classifier", "Z", "D")
    if config.head_transform:
        rules += linear_rules("cls.predictions.transform.dense", "head/transform", "W", "D")
        rules += norm_rules("cls.predictions.transform.LayerNorm", "head/norm")
        rules.append(Rule("cls.predictions.bias", "V", "head/bias"))
    return rules


def roberta_rules(config: TransformerConfig) -> Sequence[Rule]:
    """The key map of RoBERTa, whose classifier has a pooler of its own."""
    rules = encoder_rules("roberta", config)
    if config.labels:
        rules += linear_rules("classifier.dense", "pooler", "W", "D")
        rules += linear_rules("classifier.out_proj", "classifier", "Z", "D")
    elif config.pooler:
        rules += linear_rules("roberta.pooler.dense", "pooler", "W", "D")
    if config.head_transform:
        rules += linear_rules("lm_head.dense", "head/transform", "W", "D")
        rules += norm_rules("lm_head.layer_norm", "head/norm")
        rules.append(Rule("lm_head.bias", "V", "head/bias"))
    return rules


BERT = Family(
    model_type="bert",
    read=read_bert,
    write=lambda config: write_bert("bert", config),
    rules=bert_rules,
    prefix="bert.",
    renamed=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    ignored=(r"position_ids$", r"^cls\.predictions\.decoder\."),
    left_out=(r"^cls\.seq_relationship\.",),
)
ROBERTA = Family(
    model_type="roberta",
    read=read_bert,
    write=lambda config: write_bert("roberta", config),
    rules=roberta_rules,
    prefix="roberta.",
    ignored=(r"position_ids$", r"^lm_head\.decoder\."),
)
