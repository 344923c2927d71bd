"""Shapes of published models; a recipe takes one with `dataclasses.replace`."""

from dataclasses import replace

from jaxllm.config import RopeScaling, TransformerConfig

GPT2_124M = TransformerConfig(
    vocab_size=50257,
    width=768,
    layers=12,
    heads=12,
    kv_heads=12,
    head_dim=64,
    ffn=3072,
    max_positions=1024,
    norm="layer",
    mlp="gelu",
    positions="learned",
    attention_bias="all",
    mlp_bias=True,
)
"""GPT-2 small (Radford et al. 2019). Its own training dropped 10 %; later ones on more text do not."""

PYTHIA_1_4B = replace(
    GPT2_124M,
    vocab_size=50304,
    width=2048,
    layers=24,
    heads=16,
    kv_heads=16,
    head_dim=128,
    ffn=8192,
    max_positions=2048,
    mlp="gelu_erf",
    positions="rope",
    rope_fraction=0.25,
    parallel_residual=True,
    tied_embeddings=False,
)
"""Pythia 1.4B (2304.01373), a GPT-NeoX."""

PHI_1 = replace(
    PYTHIA_1_4B,
    vocab_size=51200,
    heads=32,
    kv_heads=32,
    head_dim=64,
    mlp="gelu",
    rope_fraction=0.5,
    shared_norm=True,
    head_bias=True,
)
"""Phi-1 (2306.11644)."""

SMOLLM2_135M = TransformerConfig(
    vocab_size=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    max_positions=8192,
    rope_theta=100_000.0,
)
"""SmolLM2-135M (2502.02737)."""

LLAMA2_7B = TransformerConfig(
    vocab_size=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    max_positions=4096,
    tied_embeddings=False,
)
"""Llama 2 7B (2307.09288)."""

LLAMA3_8B = replace(
    LLAMA2_7B,
    vocab_size=128256,
    kv_heads=8,
    ffn=14336,
    max_positions=8192,
    rope_theta=500_000.0,
)
"""Llama 3 8B (2407.21783)."""

LLAMA3_1_8B = replace(LLAMA3_8B, max_positions=131072, rope_scaling=RopeScaling(kind="llama3", factor=8.0))
"""Llama 3.1 8B (2407.21783)."""

LLAMA3_2_1B = replace(
    LLAMA3_1_8B,
    width=2048,
    layers=16,
    head_dim=64,
    ffn=8192,
    rope_scaling=RopeScaling(kind="llama3", factor=32.0),
    tied_embeddings=True,
)
"""Llama 3.2 1B (its model card)."""

MISTRAL_7B = replace(
    LLAMA2_7B,
    kv_heads=8,
    ffn=14336,
    max_positions=32768,
    sliding_window=4096,
)
"""Mistral 7B v0.1 (2310.06825)."""

MIXTRAL_8X7B = replace(
    MISTRAL_7B,
    rope_theta=1_000_000.0,
    sliding_window=None,
    experts=8,
    experts_per_token=2,
    router_loss=0.02,
)
"""Mixtral 8x7B (2401.04088)."""

QWEN2_5_0_5B = TransformerConfig(
    vocab_size=151936,
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    ffn=4864,
    max_positions=32768,
    norm_eps=1e-6,
    rope_theta=1_000_000.0,
    attention_bias="qkv",
)
"""Qwen2.5 0.5B (2412.15115)."""

QWEN3_0_6B = replace(
    QWEN2_5_0_5B,
    width=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    ffn=3072,
    max_positions=40960,
    attention_bias="none",
    qk_norm="head",
)
"""Qwen3 0.6B (2505.09388)."""

GEMMA2_2B = TransformerConfig(
    vocab_size=256000,
    width=2304,
    layers=26,
    heads=8,
    kv_heads=4,
    head_dim=256,
    ffn=9216,
    max_positions=8192,
    norm_eps=1e-6,
    norm_place="both",
    zero_centred_norms=True,
    mlp="geglu",
    embedding_scale=True,
    attention_scale=256**-0.5,
    attention_softcap=50.0,
    logit_softcap=30.0,
    sliding_window=4096,
    global_every=2,
)
"""Gemma 2 2B (2408.00118)."""

GEMMA3_1B = replace(
    GEMMA2_2B,
    vocab_size=262144,
    width=1152,
    heads=4,
    kv_heads=1,
    ffn=6912,
    max_positions=32768,
    qk_norm="head",
    rope_theta=1_000_000.0,
    local_rope_theta=10_000.0,
    attention_softcap=None,
    logit_softcap=None,
    sliding_window=512,
    global_every=6,
)
"""Gemma 3 1B (2503.19786), of text alone."""

OLMO2_7B = replace(
    LLAMA2_7B,
    vocab_size=100352,
    norm_eps=1e-6,
    norm_place="branch",
    qk_norm="projection",
    rope_theta=500_000.0,
)
"""OLMo 2 7B (2501.00656)."""

BERT_BASE = replace(
    GPT2_124M,
    architecture="encoder",
    vocab_size=30522,
    max_positions=512,
    norm_eps=1e-12,
    norm_place="post",
    embedding_norm=True,
    mlp="gelu_erf",
    token_types=2,
    head_transform=True,
    head_bias=True,
)
"""BERT base, uncased (1810.04805), with the head for masked tokens."""

ROBERTA_BASE = replace(BERT_BASE, vocab_size=50265, position_offset=2, norm_eps=1e-5, token_types=1)
"""RoBERTa base (1907.11692), with the same head."""

MINILM_L6 = replace(
    BERT_BASE,
    width=384,
    layers=6,
    head_dim=32,
    ffn=1536,
    head_transform=False,
    head_bias=False,
    pooler=True,
)
"""MiniLM of 6 layers (2002.10957), as all-MiniLM-L6-v2 embeds texts with it."""

T5_SMALL = TransformerConfig(
    architecture="encoder_decoder",
    vocab_size=32128,
    width=512,
    layers=6,
    encoder_layers=6,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=2048,
    max_positions=512,
    norm_eps=1e-6,
    mlp="relu",
    positions="relative",
    attention_scale=1.0,
    logit_scale=512**-0.5,
    start_token=0,
)
"""T5 small (1910.10683)."""

T5_1_1_SMALL = replace(
    T5_SMALL,
    layers=8,
    encoder_layers=8,
    heads=6,
    kv_heads=6,
    ffn=1024,
    mlp="geglu",
    logit_scale=1.0,
    tied_embeddings=False,
)
"""T5 v1.1 small (2002.05202), pretrained without dropout."""

BART_BASE = replace(
    ROBERTA_BASE,
    architecture="encoder_decoder",
    layers=6,
    encoder_layers=6,
    max_positions=1024,
    token_types=0,
    head_transform=False,
    start_token=2,
)
"""BART base (1910.13461). The bias of its head is published, all zeros, and was not trained."""
