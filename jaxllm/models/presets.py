"""Shapes of published models; a recipe takes one with `dataclasses.replace`."""

from jaxllm.config import TransformerConfig

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

LLAMA3_2_1B = TransformerConfig(
    vocab_size=128256,
    width=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    head_dim=64,
    ffn=8192,
    max_positions=8192,
    rope_theta=500_000.0,
)
"""Llama 3.2 1B (its model card), without the scaling of RoPE that takes it from 8,192 tokens to 131,072."""

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

LLAMA3_8B = TransformerConfig(
    vocab_size=128256,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    max_positions=8192,
    rope_theta=500_000.0,
    tied_embeddings=False,
)
"""Llama 3 8B (2407.21783)."""
