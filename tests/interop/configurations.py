"""What is exported: the presets of each family, and each of its settings at another value."""

from dataclasses import replace

from jaxllm.config import RopeScaling, TransformerConfig
from jaxllm.models import presets

LINEAR = RopeScaling(kind="linear", factor=8.0)
CONFIGS: dict[str, list[TransformerConfig]] = {
    "llama": [
        presets.LLAMA2_7B,
        presets.LLAMA3_2_1B,
        replace(presets.LLAMA2_7B, head_dim=96, attention_bias="all", mlp_bias=True, rope_scaling=LINEAR),
    ],
    "mistral": [presets.MISTRAL_7B, replace(presets.MISTRAL_7B, sliding_window=None)],
    "qwen2": [presets.QWEN2_5_0_5B, replace(presets.QWEN2_5_0_5B, sliding_window=128, tied_embeddings=False)],
    "qwen3": [presets.QWEN3_0_6B, replace(presets.QWEN3_0_6B, rope_scaling=RopeScaling(kind="yarn", factor=4.0))],
    "mixtral": [presets.MIXTRAL_8X7B, replace(presets.MIXTRAL_8X7B, sliding_window=64, experts_per_token=1)],
    "gemma2": [presets.GEMMA2_2B, replace(presets.GEMMA2_2B, attention_scale=144**-0.5, logit_softcap=None)],
    "gemma3_text": [presets.GEMMA3_1B, replace(presets.GEMMA3_1B, rope_scaling=LINEAR, global_every=3)],
    "gpt2": [presets.GPT2_124M, replace(presets.GPT2_124M, mlp="relu", tied_embeddings=False, dropout=0.1)],
    "gpt_neox": [presets.PYTHIA_1_4B, replace(presets.PYTHIA_1_4B, parallel_residual=False, rope_fraction=1.0)],
    "phi": [presets.PHI_1, replace(presets.PHI_1, kv_heads=8)],
    "olmo2": [presets.OLMO2_7B, replace(presets.OLMO2_7B, kv_heads=8, tied_embeddings=True)],
    "bert": [
        presets.BERT_BASE,
        presets.MINILM_L6,
        replace(presets.BERT_BASE, pooler=True),
        replace(presets.MINILM_L6, labels=3),
        replace(presets.MINILM_L6, pooler=False),
    ],
    "roberta": [
        presets.ROBERTA_BASE,
        replace(presets.ROBERTA_BASE, head_transform=False, head_bias=False, pooler=True, labels=3),
        replace(presets.ROBERTA_BASE, head_transform=False, head_bias=False, pooler=True),
    ],
    "t5": [
        presets.T5_SMALL,
        presets.T5_1_1_SMALL,
        replace(presets.T5_SMALL, layers=2, logit_scale=1.0, relative_buckets=8),
        replace(presets.T5_SMALL, tied_embeddings=False, mlp="swiglu"),
    ],
    "bart": [
        presets.BART_BASE,
        replace(presets.BART_BASE, layers=2, embedding_scale=True, mlp="relu"),
        replace(presets.BART_BASE, head_bias=False),
    ],
}
