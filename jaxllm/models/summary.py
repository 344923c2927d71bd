"""What a model costs, in closed form from its parameter table: parameters, FLOPs a token, bytes of state."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxllm.common.corrupted import row_lengths
from jaxllm.config import OptimizerConfig, RunConfig, TransformerConfig
from jaxllm.models.adapters import adapter_table, bytes_a_number, frozen_table, trained_table
from jaxllm.models.table import Param, parameter_table, windowed

FLOAT32 = 4
"""Bytes of a parameter, a gradient and a second moment."""

MOMENTUM = {"float32": 4, "bfloat16": 2}
"""Bytes of a first moment."""

FACTORED = 128
"""Adafactor factors the second moment of a leaf whose two longest axes have at least this length (optax's default)."""


class Flops(NamedTuple):
    """Floating-point operations for one token of training; the forward pass is a third of them."""

    matrices: int
    """6 for each weight that a token is multiplied with: 2 forward and 4 backward (2001.08361)."""
    attention: int
    """Scores and weighted values, for the keys that a token sees on average in a row without padding."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.matrices + self.attention


class Memory(NamedTuple):
    """Bytes of the state and of the gradients within a step, over all devices; activations are not counted."""

    parameters: int
    """Those that are trained."""
    gradients: int
    optimizer: int
    ema: int
    frozen: int = 0
    """Parameters that are not trained."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def count_parameters(config: TransformerConfig) -> int:
    """Parameters of a model; a tied head is counted once."""
    return sum(leaf.size for leaf in parameter_table(config).values())


def parameters_by_module(config: TransformerConfig) -> dict[str, int]:
    """`{path: parameters}`, where kernel, bias and scale of one module are added and layers are summed."""
    modules: dict[str, int] = {}
    for path, leaf in parameter_table(config).items():
        module, _, name = path.rpartition("/")
        key = module if name in ("kernel", "bias", "scale") else path
        modules[key] = modules.get(key, 0) + leaf.size
    return modules


def flops_per_token(config: TransformerConfig, sequence_length: int, written: int | None = None) -> Flops:
    """Training FLOPs for one token of a full row.

    Looking up an embedding is free, the head is a product (tied or not), a token meets those experts that are chosen
    for it, and norms, biases, softmax and recomputation are left out, as is usual for model FLOPs utilisation
    (2204.02311). Attention is counted causally: `(T + 1) / 2` keys on average, or fewer in a sliding window; in an
    encoder T. Packing documents into a row makes it less still, which is not counted.

    Args:
        config: the model's shape.
        sequence_length: T.
        written: tokens of a row of the decoder, where an encoder reads T; none is T. A token is then one that is read.
    """
    T, table, layers = sequence_length, parameter_table(config), config.layers
    own = {path: leaf for path, leaf in table.items() if not path.startswith("encoder/")}
    weights, head = _multiplied(config, own), table["embedding/tokens"].size if config.tied_embeddings else 0
    if config.architecture == "encoder":
        return Flops(6 * (weights + head), _attention(config, layers * T))
    if config.architecture == "decoder":
        return Flops(6 * (weights + head), _attention(config, _keys_seen(config, T)) // T)
    D = T if written is None else written
    reads = 6 * _multiplied(config, {path: leaf for path, leaf in table.items() if path not in own})
    of_memory = _multiplied(config, {p: x for p, x in own.items() if re.search("cross_attention/(key|value)/", p)})
    writes = 6 * (weights + head - of_memory)
    keys = (config.encoder_layers or layers) * T * T + _keys_seen(config, D) + layers * D * T
    return Flops(reads + 6 * of_memory + writes * D // T, _attention(config, keys) // T)


def _multiplied(config: TransformerConfig, table: Mapping[str, Param]) -> int:
    """Weights of matrices that a token is multiplied with."""
    share = {False: 1.0, True: config.experts_per_token / max(config.experts, 1)}
    return round(sum(leaf.size * share["E" in leaf.axes] for leaf in table.values() if leaf.is_matrix))


def _keys_seen(config: TransformerConfig, tokens: int) -> int:
    """By all tokens of a row, in all layers of a decoder."""
    window = min(config.sliding_window or tokens, tokens)
    within = window * (window + 1) // 2 + (tokens - window) * window
    has_window = sum(windowed(config, config.layers))
    return has_window * within + (config.layers - has_window) * (tokens * (tokens + 1) // 2)


def _attention(config: TransformerConfig, keys: int) -> int:
    """FLOPs of q k' and of p v, forward and backward, of so many pairs of a token and a key."""
    return 6 * 2 * config.heads * config.head_dim * keys


def run_flops(config: RunConfig) -> Flops:
    """`flops_per_token` of a run: of what it does not train no gradient is made, and an adapter is multiplied too."""
    flops = flops_per_token(config.model, *row_lengths(config))
    frozen, whole = (_multiplied(config.model, t) for t in (frozen_table(config), parameter_table(config.model)))
    adapter = sum(leaf.size for leaf in adapter_table(config.model, config.tuning).values() if leaf.is_factor)
    return flops._replace(matrices=round(flops.matrices * (1 - frozen / whole / 3)) + 6 * adapter)


def memory(config: RunConfig) -> Memory:
    """Bytes of parameters, gradients, optimizer state and moving average of a run.

    AdamW holds two moments, Lion one, Adafactor one row and one column for each large matrix, and Muon one
    moment for the matrices of the blocks and two for everything else.
    """
    table, dtype = trained_table(config), config.tuning.base_dtype
    parameters = FLOAT32 * sum(leaf.size for leaf in table.values())
    moments = sum(_moment_bytes(leaf, config.optimizer) for leaf in table.values())
    frozen = sum(round(bytes_a_number(path, leaf, dtype) * leaf.size) for path, leaf in frozen_table(config).items())
    return Memory(parameters, parameters, moments, parameters if config.train.ema_decay is not None else 0, frozen)


def _moment_bytes(leaf: Param, optimizer: OptimizerConfig) -> int:
    """What the optimizer keeps for one leaf."""
    if optimizer.kind == "adafactor":
        *_, second, first = (0, *sorted(leaf.shape))
        factored = second >= FACTORED
        return FLOAT32 * (leaf.size // first + leaf.size // second if factored else leaf.size)
    momentum = MOMENTUM[optimizer.momentum_dtype] * leaf.size
    has_one = optimizer.kind == "lion" or (optimizer.kind == "muon" and leaf.is_matrix and leaf.axes[0] == "L")
    return momentum if has_one else momentum + FLOAT32 * leaf.size
