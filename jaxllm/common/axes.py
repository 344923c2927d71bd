"""The one legend of axis letters. Array names end in them (`x_BTD`) and einsum strings use the same capitals.

    B batch        T query tokens     S key tokens       D model width
    N query heads  K key-value heads  G = N / K          H head size
    F ffn          V vocabulary       L layers           P learned positions
    E experts      M ffn of an expert J outputs of a router
    R relative position buckets       X distances        Y token types
    W model width as an output        Z labels           C chunks
    Q ranks of a low-rank update      U virtual tokens

`Axes` names the logical axes of a parameter; `jaxllm/sharding/axes.py` maps them to mesh axes.
"""

Axes = tuple[str, ...]

LEGEND = {
    "L": "layers",
    "D": "width",
    "N": "heads",
    "K": "kv_heads",
    "H": "head_dim",
    "F": "ffn",
    "V": "vocab_size",
    "P": "max_positions",
    "E": "experts",
    "J": "experts",
    "M": "ffn",
    "R": "relative_buckets",
    "Y": "token_types",
    "W": "width",
    "Z": "labels",
}
"""Parameter axes and the field of `TransformerConfig` that sizes each."""

ALWAYS = "LDNKHFVP"
"""Those that every model has, so that none is 0."""
