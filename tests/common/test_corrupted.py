import math
from itertools import pairwise

import pytest

from jaxllm.common.corrupted import corrupted_lengths, longest_piece, target_length
from jaxllm.config import ObjectiveConfig

SPANS, INFILLING = ObjectiveConfig(kind="span_corruption"), ObjectiveConfig(kind="infilling")
ODD = [
    ObjectiveConfig(kind=kind, noise=noise, mean_span=span)
    for kind in ("span_corruption", "infilling")
    for noise in (0.01, 0.15, 0.5, 0.93)
    for span in (1.0, 2.5, 20.0)
]


@pytest.mark.parametrize(("length", "tokens", "targets"), [(512, 568, 114), (1024, 1137, 229), (256, 284, 58)])
def test_rows_are_as_long_as_those_of_t5(length, tokens, targets):
    """`compute_input_and_target_lengths`, of the published code, gives these numbers."""
    assert longest_piece(SPANS, length, math.inf, begins=0) == tokens
    assert corrupted_lengths(SPANS, tokens, begins=0).targets == targets


def test_the_decoder_has_room_for_one_full_row_of_the_encoder_rounded_up():
    assert [target_length(SPANS, n) for n in (512, 256, 64, 100)] == [128, 64, 16, 22]
    assert target_length(INFILLING, 512) == 640
    assert target_length(ObjectiveConfig(kind="seq2seq"), 512) == 512
    assert target_length(ObjectiveConfig(kind="infilling", target_length=70), 512) == 70


@pytest.mark.parametrize("objective", ODD, ids=str)
def test_longer_text_is_never_shorter_when_it_is_corrupted(objective):
    lengths = [corrupted_lengths(objective, n, begins=1) for n in range(400)]
    for before, after in pairwise(lengths):
        assert all(a <= b <= a + 2 for a, b in zip(before, after, strict=True))
    for n, made in enumerate(lengths[1:], 1):
        assert 0 <= made.hidden < n
        assert (made.hidden > 0) == (n > 1)
        assert 1 <= made.spans <= max(made.hidden, 1)


@pytest.mark.parametrize("objective", ODD, ids=str)
def test_the_longest_piece_fits_and_one_more_token_does_not(objective):
    for inputs, targets in ((2, 2), (16, 9), (64, math.inf), (100, 30)):
        tokens = longest_piece(objective, inputs, targets, begins=1)
        fits = [
            made.inputs <= inputs and made.targets <= targets
            for made in (corrupted_lengths(objective, n, begins=1) for n in (tokens, tokens + 1))
        ]
        assert fits == [True, False] or (tokens == 0 and not any(fits))
