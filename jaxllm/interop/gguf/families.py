"""What GGUF calls the parts of each family of models: one table for reading and for writing.

A tensor's name in GGUF follows from its name in a Hugging Face folder by the package `gguf`'s own table. Layouts and
metadata are those of llama.cpp's `convert_hf_to_gguf.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxllm.interop.gguf.header import gguf_package


class Field(NamedTuple):
    """A field of `config.json` that is one of the metadata."""

    key: str
    """Without the architecture before it."""
    kind: type
    """`int`, `float` or `bool`."""
    required: bool = True


@dataclass(frozen=True)
class Family:
    """An architecture of GGUF and a model type of Hugging Face."""

    arch: str
    model_type: str
    model_class: str
    fields: Mapping[str, Field]
    fixed: Mapping[str, tuple[Any, ...]]
    """Fields that the architecture implies: the values that it stands for; a file is read as the first."""
    modules: tuple[str, ...]
    """Those with a weight, by their names in a Hugging Face folder; `{i}` is the layer and `{e}` the expert."""
    layouts: Mapping[str, str] = field(default_factory=dict)
    """How tensors whose modules end so lie in GGUF: see `gguf_layout`."""
    head: str = "lm_head"
    """The module that is missing where the embedding is the head."""
    head_required: bool = False
    """llama.cpp wants a head of its own, be it a copy."""
    partial_rotary: str | None = None
    """The field that says which share of a head is rotated."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of metadata that older files do not have."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Fields that say whether there are biases, and a tensor in GGUF that is there if so."""
    sliding_period: int | None = None
    """Of this many layers one sees everything, the last; none: all layers are alike."""

    @property
    def prefix(self) -> str:
        """Of all names but the head's."""
        return self.modules[0].split(".")[0] + "."


def _layers(modules: str, before: str = "model.layers.{i}.") -> tuple[str, ...]:
    return tuple(before + module for module in modules.split())


SIZES = {
    "num_hidden_layers": Field("block_count", int),
    "max_position_embeddings": Field("context_length", int),
    "hidden_size": Field("embedding_length", int),
    "intermediate_size": Field("feed_forward_length", int),
    "num_attention_heads": Field("attention.head_count", int),
}
DECODER = {
    **SIZES,
    "num_key_value_heads": Field("attention.head_count_kv", int, required=False),
    "rms_norm_eps": Field("attention.layer_norm_rms_epsilon", float),
}
WINDOW = {"sliding_window": Field("attention.sliding_window", int, required=False)}
HEAD = {"head_dim": Field("attention.key_length", int, required=False)}
SOFTCAPS = {
    "attn_logit_softcapping": Field("attn_logit_softcapping", float, required=False),
    "final_logit_softcapping": Field("final_logit_softcapping", float, required=False),
}

ATTENTION_BIAS = {"attention_bias": "blk.0.attn_q.bias"}

ENDS = ("model.embed_tokens", "model.norm", "lm_head")
ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
QK_NORM = "self_attn.q_norm self_attn.k_norm"
NORMS = "input_layernorm post_attention_layernorm"
GEMMA_NORMS = f"{NORMS} pre_feedforward_layernorm post_feedforward_layernorm"
EXPERTS = " ".join(f"block_sparse_moe.experts.{{e}}.{w}" for w in ("w1", "w2", "w3"))

SILU = {"hidden_act": ("silu", "swish")}
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")
GEMMA_GELU = {"hidden_activation": ("gelu_pytorch_tanh", "gelu_new")}

LLAMA = Family(
    "llama",
    "llama",
    "LlamaForCausalLM",
    {**DECODER, **HEAD},
    SILU,
    ENDS + _layers(f"{NORMS} {ATTENTION} {GATED}"),
    {"self_attn.q_proj": "pairs of heads", "self_attn.k_proj": "pairs of kv_heads"},
    biases={**ATTENTION_BIAS, "mlp_bias": "blk.0.ffn_gate.bias"},
)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    model_class="MistralForCausalLM",
    fields={**LLAMA.fields, **WINDOW},
    biases={},
)
QWEN2 = replace(
    LLAMA,
    arch="qwen2",
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    fixed={**SILU, "use_sliding_window": (False,)},
    layouts={},
    biases={},
)
GEMMA2 = Family(
    "gemma2",
    "gemma2",
    "Gemma2ForCausalLM",
    {**DECODER, **HEAD, **WINDOW, **SOFTCAPS},
    GEMMA_GELU,
    ENDS[:2] + _layers(f"{GEMMA_NORMS} {ATTENTION} {GATED}"),  # never a head of its own
    {"norm": "one more"},
    defaults={"attention.sliding_window": 4096},
    biases=ATTENTION_BIAS,
    sliding_period=2,
)

FAMILIES = (
    LLAMA,
    MISTRAL,
    replace(
        MISTRAL,
        model_type="mixtral",
        model_class="MixtralForCausalLM",
        fields={
            **MISTRAL.fields,
            "num_local_experts": Field("expert_count", int),
            "num_experts_per_tok": Field("expert_used_count", int),
        },
        modules=ENDS + _layers(f"{NORMS} {ATTENTION} block_sparse_moe.gate {EXPERTS}"),
    ),
    QWEN2,
    replace(
        QWEN2,
        arch="qwen3",
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        modules=ENDS + _layers(f"{NORMS} {ATTENTION} {QK_NORM} {GATED}"),
        biases=ATTENTION_BIAS,
    ),
    GEMMA2,
    replace(
        GEMMA2,
        arch="gemma3",
        model_type="gemma3_text",
        model_class="Gemma3ForCausalLM",
        fields={key: known for key, known in GEMMA2.fields.items() if key != "attn_logit_softcapping"},
        modules=ENDS + _layers(f"{GEMMA_NORMS} {ATTENTION} {QK_NORM} {GATED}"),
        defaults={"rope.freq_base": 1e6},
        sliding_period=6,
    ),
    Family(
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        {
            "n_layer": SIZES["num_hidden_layers"],
            "n_positions": SIZES["max_position_embeddings"],
            "n_embd": SIZES["hidden_size"],
            "n_inner": SIZES["intermediate_size"],
            "n_head": SIZES["num_attention_heads"],
            "layer_norm_epsilon": Field("attention.layer_norm_epsilon", float),
        },
        {"activation_function": GELU, "scale_attn_by_inverse_layer_idx": (False,)},
        (
            *("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
            *_layers("ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj", "transformer.h.{i}."),
        ),
        dict.fromkeys(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), "transposed"),
    ),
    Family(
        "gptneox",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {
            **SIZES,
            "layer_norm_eps": Field("attention.layer_norm_epsilon", float),
            "use_parallel_residual": Field("use_parallel_residual", bool),
        },
        {"hidden_act": ("gelu", *GELU[:-1])},
        (
            *("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
            *_layers("input_layernorm post_attention_layernorm", "gpt_neox.layers.{i}."),
            *_layers("query_key_value dense", "gpt_neox.layers.{i}.attention."),
            *_layers("dense_h_to_4h dense_4h_to_h", "gpt_neox.layers.{i}.mlp."),
        ),
        {"attention.query_key_value": "parts of heads"},
        biases={"attention_bias": "blk.0.attn_qkv.bias"},
        head="embed_out",
        head_required=True,
        partial_rotary="rotary_pct",
    ),
    Family(
        "phi2",
        "phi",
        "PhiForCausalLM",
        {
            **SIZES,
            "num_key_value_heads": DECODER["num_key_value_heads"],
            "layer_norm_eps": Field("attention.layer_norm_epsilon", float),
        },
        {"hidden_act": GELU, "qk_layernorm": (False,)},
        (
            *("model.embed_tokens", "model.final_layernorm", "lm_head"),
            *_layers(
                "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2"
            ),
        ),
        head_required=True,
        partial_rotary="partial_rotary_factor",
    ),
    replace(
        QWEN2,
        arch="olmo2",
        model_type="olmo2",
        model_class="Olmo2ForCausalLM",
        fixed=SILU,
        biases=ATTENTION_BIAS,
        modules=ENDS + _layers(f"post_attention_layernorm post_feedforward_layernorm {ATTENTION} {QK_NORM} {GATED}"),
        head_required=True,
    ),
)
"""Of several of one architecture the first is the plain one."""


def tensor_names(family: Family, layers: int, experts: int = 0) -> dict[str, tuple[str, int | None]]:
    """For each module of a Hugging Face folder its name in GGUF, and the place in it of an expert.

    Args:
        family: whose.
        layers: how many there are.
        experts: in each layer.
    """
    gguf = gguf_package()
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    known = gguf.get_tensor_name_map(arch, layers)
    names: dict[str, tuple[str, int | None]] = {}
    for module in family.modules:
        for i in range(layers if "{i}" in module else 1):
            for e in range(experts) if "{e}" in module else (None,):
                stacked = module.replace(".{e}", "").format(i=i)
                names[module.format(i=i, e=e)] = known.get_name(stacked), e
    return names
