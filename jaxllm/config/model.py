"""The shape of a transformer."""

from dataclasses import dataclass
from typing import Literal

GATED = frozenset({"swiglu", "geglu"})
"""The MLPs with a second projection, multiplied onto the activated one."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary wavelengths are stretched for texts longer than those of the pretraining."""

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """All by `factor`; only the long ones (Llama 3.1); or by a ramp between two borders (2309.00071)."""
    factor: float = 1.0
    """By which wavelengths grow."""
    original_positions: int = 8192
    """The longest text of the pretraining (`llama3`, `yarn`)."""
    low: float = 1.0
    """Wavelengths that fit fewer times than this into `original_positions` grow by all of `factor`."""
    high: float = 4.0
    """Those that fit more often than this stay; YaRN's own are 1 and 32."""
    attention_factor: float | None = None
    """YaRN multiplies queries and keys by it; none is 0.1 ln(factor) + 1."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One configurable block, repeated; a family (Llama, GPT-2, BERT, T5, ...) is a setting of these fields."""

    architecture: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """Each token sees those before it; all tokens; or a decoder that also attends to what an encoder makes."""
    vocab_size: int = 4096
    """Rows of the token embedding; at least the tokenizer's size."""
    width: int = 256
    """D, the size of the residual stream."""
    layers: int = 6
    """L, the number of blocks; of an encoder-decoder, those of its decoder."""
    encoder_layers: int | None = None
    """Blocks of the encoder of an encoder-decoder; none means `layers`."""
    heads: int = 4
    """N, query heads."""
    kv_heads: int = 4
    """K, key-value heads; fewer than `heads` is grouped-query attention, 1 is multi-query."""
    head_dim: int = 64
    """H, the size of one head."""
    ffn: int = 768
    """F, the hidden size of the MLP."""
    max_positions: int = 2048
    """The longest sequence that the model is meant for; rows of the learned position table."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with a bias."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    norm_place: Literal["pre", "post", "both", "branch"] = "pre"
    """Before each branch, and once at the end; after each sum (BERT); before and after each branch (Gemma 2); or after
    each branch only (OLMo 2)."""
    zero_centred_norms: bool = False
    """The scale of a norm is 1 + its parameter, as in Gemma."""
    embedding_norm: bool = False
    """A norm of the embeddings."""
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_erf", "relu", "relu2"] = "swiglu"
    """Gated (SwiGLU, GeGLU) or plain (GELU by tanh or exact, ReLU, squared ReLU) feed-forward."""
    experts: int = 0
    """Gated MLPs of which each token takes a few, in the place of one (2401.04088); 0 has no experts."""
    experts_per_token: int = 2
    """Those that the router finds best for a token."""
    router_loss: float = 0.01
    """Weight of the loss that balances how many tokens experts get (2101.03961)."""
    positions: Literal["rope", "learned", "relative", "none"] = "rope"
    """Rotary, a learned table added to the embedding, learned sums for distances added to scores (T5), or none."""
    position_offset: int = 0
    """Rows at the beginning of the learned table that no token uses (RoBERTa and BART: 2)."""
    relative_buckets: int = 32
    """Groups of distances with one learned sum each head."""
    relative_distance: int = 128
    """Distances from here on are in the last group."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_fraction: float = 1.0
    """The share of each head, from its beginning, that is rotated."""
    rope_scaling: RopeScaling = RopeScaling()
    """For long texts; of layers with a window only where all have one."""
    local_rope_theta: float | None = None
    """The base in layers with a window; none means `rope_theta`."""
    attention_bias: Literal["none", "qkv", "all"] = "none"
    """Biases on query, key and value projections, or on the output projection too."""
    mlp_bias: bool = False
    """Biases on the MLP's projections."""
    head_bias: bool = False
    """A bias on the logits."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """RMSNorm of queries and keys before the rotation: of each head, or over all heads at once."""
    attention_scale: float | None = None
    """Multiplies products of queries and keys; none is 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """Scores become cap * tanh(scores / cap)."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logits / cap)."""
    sliding_window: int | None = None
    """A token sees itself and this many minus one tokens before it."""
    global_every: int | None = None
    """Every so many layers the last one has no window (Gemma 2: 2); none has a window in all."""
    tied_embeddings: bool = True
    """The head is the transposed token embedding."""
    head_transform: bool = False
    """A linear map, the activation and a LayerNorm before the head, as in BERT."""
    logit_scale: float = 1.0
    """Multiplies final hidden states before the head."""
    embedding_scale: bool = False
    """Multiply embeddings by sqrt(width), as Gemma does."""
    parallel_residual: bool = False
    """Attention and MLP read the same input and are added together, as in GPT-NeoX."""
    shared_norm: bool = False
    """Parallel branches read one norm, as in Phi."""
    token_types: int = 0
    """Rows of a table of token types (BERT's segments A and B), added to the embedding; 0 has none."""
    pooler: bool = False
    """A linear map and tanh over the first token, for `labels` or as an embedding of the text."""
    labels: int = 0
    """Outputs of a classification or, with 1, regression head; 0 has none."""
    start_token: int | None = None
    """The first input of the decoder of an encoder-decoder; none is the padding token."""
    dropout: float = 0.0
    """Dropped share of each residual branch and of the embedding, in training only."""
    first_dropout: float | None = None
    """That of the embedding and of the first layer, from which it grows evenly to `dropout` in the last (2305.11206);
    none is `dropout`."""
    init_std: float = 0.02
    """Standard deviation of every matrix; residual outputs are scaled by 1 / sqrt(2 layers)."""
