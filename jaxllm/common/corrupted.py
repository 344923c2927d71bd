"""How long a text is when spans of it are hidden: known before the text is, so that rows can be planned and checked."""

import bisect
import math
from typing import NamedTuple

from jaxllm.config import OBJECTIVES_OF, PUBLISHED_NOISE, ObjectiveConfig, RunConfig

ALIGNMENT = 128
"""What kernels and meshes like the length of a row to be a multiple of."""


class Lengths(NamedTuple):
    """What becomes of a piece of text."""

    hidden: int
    """Of its tokens."""
    spans: int
    """In which they lie."""
    inputs: int
    """Tokens that the encoder reads, with the begin and the end of the piece."""
    targets: int
    """Tokens that the decoder writes, with the end of the piece."""


def corrupted_lengths(objective: ObjectiveConfig, tokens: int, begins: int) -> Lengths:
    """Of a piece of so many tokens under `span_corruption` or `infilling`.

    Counts as T5 does (1910.10683, `random_spans_noise_mask`): at least one token stays, and of two or more at least one
    is hidden. All lengths grow with `tokens`, or stay.

    Args:
        objective: says how much is hidden, and in which spans.
        tokens: of text alone.
        begins: 1 where a piece has a token that begins it, else 0.
    """
    noise = PUBLISHED_NOISE[objective.kind] if objective.noise is None else objective.noise
    hidden = min(max(round(tokens * noise), 1), max(tokens - 1, 0))
    spans = max(min(round(hidden / objective.mean_span), tokens - hidden), 1)
    if objective.kind == "infilling":
        return Lengths(hidden, spans, inputs=begins + tokens - hidden + spans + 1, targets=tokens + 1)
    read = begins + tokens - hidden + min(spans, hidden) + 1
    return Lengths(hidden, spans, inputs=read, targets=hidden + spans + 1)


def longest_piece(objective: ObjectiveConfig, inputs: int, targets: float, begins: int) -> int:
    """The most tokens of text that, corrupted, fit into so many places of the encoder and of the decoder."""

    def too_long(tokens: int) -> bool:
        after = corrupted_lengths(objective, tokens, begins)
        return after.inputs > inputs or after.targets > targets

    return bisect.bisect(range(1, 2**40), False, key=too_long)


def target_length(objective: ObjectiveConfig, sequence_length: int) -> int:
    """Places in a row of the decoder, of an encoder-decoder whose encoder reads `sequence_length`."""
    if objective.target_length is not None:
        return objective.target_length
    if objective.kind == "seq2seq":
        return sequence_length
    tokens = longest_piece(objective, sequence_length, math.inf, begins=0)
    multiple = math.gcd(max(sequence_length // 4, 1), ALIGNMENT)  # a quarter: short rows are not mostly padding
    return -(-corrupted_lengths(objective, tokens, begins=0).targets // multiple) * multiple


def batch_arrays(objective: ObjectiveConfig, sequence_length: int) -> dict[str, tuple[int, str]]:
    """The length of a row and the type of each array that the loader gives (`data/loader.py`)."""
    encodes = objective.kind in OBJECTIVES_OF["encoder_decoder"]
    own = target_length(objective, sequence_length) if encodes else sequence_length
    arrays = dict.fromkeys(("tokens", "targets", "segments", "positions"), (own, "int32"))
    arrays["weights"] = (own, "float32")
    if objective.kind == "prefix":
        arrays["prefix"] = (own, "bool")
    if encodes:
        arrays |= {f"encoder_{name}": (sequence_length, "int32") for name in ("tokens", "segments", "positions")}
    return arrays


def row_lengths(config: RunConfig) -> tuple[int, int]:
    """Tokens of a row that a model reads, and that it is to tell."""
    length = config.data.sequence_length
    return length, batch_arrays(config.objective, length)["tokens"][0]
