"""What is hidden, of pieces that are given by their lengths alone."""

import itertools
from collections import Counter

import numpy as np
import pytest

from jaxllm.common.corrupted import corrupted_lengths
from jaxllm.config import ObjectiveConfig
from jaxllm.data.corruption import choose, corrupt_spans, cut, infill, mask

SENTINELS = np.arange(900, 1000)[::-1]
"""Their ids fall, as T5's do."""

MASK = 999


def numbers(objective: ObjectiveConfig, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = np.array([corrupted_lengths(objective, n, 0) for n in lengths.tolist()]).reshape(-1, 4)
    return found[:, 0], found[:, 1]


def spans_of(objective: ObjectiveConfig, lengths: np.ndarray, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each piece; its tokens are 0, 1, ... ."""
    hidden, spans = numbers(objective, lengths)
    tokens = np.concatenate([np.arange(n) for n in lengths])
    read, written = corrupt_spans(np.random.default_rng(seed), tokens, lengths, hidden, spans, SENTINELS)
    reads = np.cumsum(lengths - hidden + np.minimum(spans, hidden))[:-1]
    assert len(written) == (hidden + spans).sum()
    parts = zip(np.split(read, reads), np.split(written, np.cumsum(hidden + spans)[:-1]), strict=True)
    return [(a.tolist(), b.tolist()) for a, b in parts]


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The text, with what follows each sentinel in the targets put where it stands in the inputs."""
    hidden: dict[int, list[int]] = {}
    for token in targets:
        if token >= 900:
            hidden[token] = []
        else:
            hidden[next(reversed(hidden))].append(token)
    return [token for i in inputs for token in (hidden[i] if i >= 900 else [i])]


def hidden_mask(inputs: list[int], length: int) -> tuple[bool, ...]:
    return tuple(i not in inputs for i in range(length))


def random_spans_noise_mask(rng: np.random.Generator, length: int, noise: float, mean: float) -> tuple[bool, ...]:
    """T5's code, line by line and one piece at a time."""

    def random_segmentation(items: int, segments: int) -> np.ndarray:
        first = np.arange(items - 1) < segments - 1
        rng.shuffle(first)
        return np.bincount(np.cumsum(np.concatenate([[False], first])), minlength=segments)

    num_noise = min(max(int(np.round(length * noise)), 1), length - 1)
    num_spans = max(int(np.round(num_noise / mean)), 1)
    noise_lengths = random_segmentation(num_noise, num_spans)
    nonnoise_lengths = random_segmentation(length - num_noise, num_spans)
    interleaved = np.stack([nonnoise_lengths, noise_lengths], axis=1).reshape(-1)
    starts = np.zeros(length, int)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return tuple((np.cumsum(starts) % 2 == 1).tolist())


@pytest.mark.parametrize(("length", "noise", "mean"), [(9, 0.4, 2.0), (10, 0.15, 3.0), (8, 0.5, 1.0), (2, 0.15, 3.0)])
def test_spans_have_the_law_of_the_published_code(length, noise, mean):
    objective, tries = ObjectiveConfig(kind="span_corruption", noise=noise, mean_span=mean), 20_000
    ours = Counter(hidden_mask(inputs, length) for inputs, _ in spans_of(objective, np.full(tries, length)))
    rng = np.random.default_rng(1)
    reference = Counter(random_spans_noise_mask(rng, length, noise, mean) for _ in range(tries))
    assert ours.keys() == reference.keys()
    differences = [(ours[m] - reference[m]) ** 2 / (ours[m] + reference[m]) for m in reference]
    assert sum(differences) < len(reference) + 5 * np.sqrt(2 * len(reference))  # chi-square, to five deviations


@pytest.mark.parametrize("length", [2, 3, 10, 100, 568, 2000])
def test_as_much_is_hidden_in_as_many_spans_as_in_the_published_code(length):
    expected = random_spans_noise_mask(np.random.default_rng(0), length, 0.15, 3.0)
    hidden, spans = numbers(ObjectiveConfig(kind="span_corruption"), np.array([length]))
    assert hidden[0] == sum(expected)
    assert spans[0] == sum(b and not a for a, b in itertools.pairwise((False, *expected)))


@pytest.mark.parametrize("noise", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean", [1.0, 3.0])
def test_inputs_and_targets_give_the_text_back_with_sentinels_in_order(noise, mean):
    objective = ObjectiveConfig(kind="span_corruption", noise=noise, mean_span=mean)
    lengths = np.concatenate([np.arange(1, 60), np.full(30, 2), [110, 1, 1, 97]])
    for length, (inputs, targets) in zip(lengths, spans_of(objective, lengths), strict=True):
        assert restored(inputs, targets) == list(range(length))
        asked, told = ([i for i in side if i >= 900] for side in (inputs, targets))
        assert told == SENTINELS[: len(told)].tolist()
        assert asked == (told if length > 1 else [])
        assert inputs[0] == 0
        assert targets[0] == SENTINELS[0]


def test_spans_hide_15_percent_and_are_3_tokens_long():
    lengths = np.random.default_rng(2).integers(100, 568, 300)
    found = spans_of(ObjectiveConfig(kind="span_corruption"), lengths)
    hidden = sum(i < 900 for _, targets in found for i in targets)
    spans = sum(i >= 900 for _, targets in found for i in targets)
    assert hidden / lengths.sum() == pytest.approx(0.15, abs=0.001)
    assert hidden / spans == pytest.approx(3, abs=0.05)


def test_an_empty_piece_among_others_is_left_empty():
    """Where a window of the stream holds nothing but the ends of documents."""
    lengths, none = np.array([5, 0, 7]), np.array([1, 0, 1])
    tokens, ones = np.arange(12), np.ones(3, int)
    read, written = corrupt_spans(np.random.default_rng(0), tokens, lengths, none, ones, SENTINELS)
    assert (len(read), len(written)) == (12, 5)
    assert infill(np.random.default_rng(0), tokens, lengths, none, ones, MASK).tolist().count(MASK) == 3


# Infilling


def infilled(lengths: np.ndarray, seed: int = 0, **fields: float) -> tuple[list[list[int]], list[list[int]]]:
    """The inputs of each piece, whose tokens are 0, 1, ...; and the lengths of its spans, in order."""
    hidden, spans = numbers(ObjectiveConfig(kind="infilling", **fields), lengths)
    tokens = np.concatenate([np.arange(n) for n in lengths])
    inputs = infill(np.random.default_rng(seed), tokens, lengths, hidden, spans, MASK)
    ends = np.cumsum(lengths - hidden + spans)
    assert ends[-1] == len(inputs)
    parts = [part.tolist() for part in np.split(inputs, ends[:-1])]
    return parts, [_sizes(part, n) for part, n in zip(parts, lengths.tolist(), strict=True)]


def _sizes(inputs: list[int], length: int) -> list[int]:
    """Tokens that are missing at each mask, but at masks that touch, which are left out."""
    sizes = []
    for before, here, after in zip([-1, *inputs], inputs, [*inputs[1:], length], strict=False):
        if here == MASK and MASK not in (before, after):
            sizes.append(after - before - 1)
    return sizes


def test_what_infilling_keeps_stays_in_order_and_one_mask_stands_for_each_span():
    lengths = np.concatenate([np.arange(1, 60), np.full(30, 2), [400, 1]])
    parts, _ = infilled(lengths)
    hidden, spans = numbers(ObjectiveConfig(kind="infilling"), lengths)
    for part, length, away, masks in zip(parts, lengths, hidden, spans, strict=True):
        kept = [i for i in part if i != MASK]
        assert kept == sorted(set(kept))
        assert (len(kept), part.count(MASK)) == (length - away, masks)
        assert set(kept) <= set(range(length))


def test_infilling_hides_30_percent_in_spans_of_poisson_lengths():
    lengths = np.full(300, 500)
    _, sizes = infilled(lengths)
    found = np.array([size for piece in sizes for size in piece])
    hidden, spans = numbers(ObjectiveConfig(kind="infilling"), lengths)
    assert hidden.sum() / lengths.sum() == pytest.approx(0.3, abs=0.001)
    assert hidden.sum() / spans.sum() == pytest.approx(3, abs=0.01)
    assert found.mean() == pytest.approx(3, abs=0.07)
    assert found.var() == pytest.approx(3, abs=0.25)
    shares = np.bincount(found, minlength=8)[:8] / len(found)
    poisson = np.exp(-3) * 3.0 ** np.arange(8) / np.array([1, 1, 2, 6, 24, 120, 720, 5040])
    assert shares == pytest.approx(poisson, abs=0.012)
    assert shares[0] > 0.03  # spans of nothing, where a mask is put in


def test_spans_lie_anywhere_between_the_kept_tokens():
    parts, _ = infilled(np.full(30_000, 4), noise=0.3, mean_span=1.0)  # one of four, or a mask among four
    places = Counter(part.index(MASK) for part in parts)
    assert set(places) == {0, 1, 2, 3}
    assert all(abs(count - 7_500) < 400 for count in places.values())


# Masks


def masked(tokens: np.ndarray, text: np.ndarray, seed: int, words: np.ndarray | None = None, noise: float = 0.15):
    words = np.arange(len(tokens)) if words is None else words
    return mask(np.random.default_rng(seed), tokens, words, text, noise, MASK, np.arange(500, 900))


def test_15_percent_are_told_of_which_80_are_masked_10_random_and_10_the_same():
    tokens, fates = np.arange(500), Counter()
    for seed in range(400):
        inputs, told = masked(tokens, tokens % 5 > 0, seed)
        assert told.sum() == 60  # of 400
        assert not told[::5].any()
        assert (inputs[~told] == tokens[~told]).all()
        for i in np.flatnonzero(told):
            fates["mask" if inputs[i] == MASK else "same" if inputs[i] == i else "random"] += 1
            assert inputs[i] in (MASK, i) or 500 <= inputs[i] < 900
    assert [fates[name] / 24_000 for name in ("mask", "random", "same")] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_each_token_is_as_likely_to_be_told_as_any_other():
    counts = sum(masked(np.arange(40), np.ones(40, bool), seed)[1].astype(int) for seed in range(4000))
    assert counts.sum() == 4000 * 6
    assert abs(counts - 600).max() < 5 * np.sqrt(600)


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.5])
def test_whole_words_are_told_whole_and_to_the_share_on_average(noise):
    sizes = np.random.default_rng(0).integers(1, 6, 150)
    words, text = np.repeat(np.arange(150), sizes), np.ones(sizes.sum(), bool)
    share = []
    for seed in range(300):
        _, told = masked(np.arange(len(words)), text, seed, words, noise)
        counts = np.bincount(words, weights=told)
        assert set(counts[counts > 0] == sizes[counts > 0]) == {True}
        assert abs(told.sum() - noise * len(words)) <= 3
        share.append(told.mean())
    assert np.mean(share) == pytest.approx(noise, rel=0.02)


def test_a_row_always_tells_something_if_it_has_text():
    for length in range(1, 6):
        _, told = masked(np.arange(length), np.ones(length, bool), 0)
        assert told.sum() == 1
    words = np.zeros(9, int)
    assert masked(np.arange(9), np.ones(9, bool), 0, words)[1].all()
    for length in (0, 4):
        assert not masked(np.arange(length), np.zeros(length, bool), 0)[1].any()


# What all are made of


def test_each_choice_of_members_is_as_likely():
    chosen = choose(np.random.default_rng(0), np.full(60_000, 5), np.full(60_000, 2)).reshape(-1, 5)
    counts = Counter(map(tuple, chosen.tolist()))
    assert len(counts) == 10
    assert all(abs(count - 6_000) < 5 * np.sqrt(6_000) for count in counts.values())


def test_groups_are_cut_into_as_many_parts_as_asked_none_empty():
    sizes, counts = np.array([5, 1, 0, 7, 3]), np.array([2, 1, 1, 7, 1])
    for seed in range(50):
        parts = cut(np.random.default_rng(seed), sizes, counts)
        a, b, *rest = parts.tolist()
        assert (a + b, min(a, b) >= 1, rest) == (5, True, [1, 0, 1, 1, 1, 1, 1, 1, 1, 3])
