"""Hides tokens of text: BERT's masks, T5's spans and BART's infilling, of all pieces of a row at once.

`tokens` are those of all pieces, one piece after the other, and have no begin or end in them.
"""

import numpy as np


def choose(rng: np.random.Generator, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of each group so many of its members, any of which are as likely as any others.

    Args:
        rng: gives one number for each member.
        sizes: int [groups]: their members.
        counts: int [groups]: at most `sizes`.

    Returns:
        bool [all members], one group after the other.
    """
    members = np.arange(sizes.sum())
    order = np.argsort(np.repeat(np.arange(len(sizes)), sizes) + rng.random(len(members)))
    chosen = np.empty(len(members), bool)
    chosen[order] = members < np.repeat(np.cumsum(sizes) - sizes + counts, sizes)
    return chosen


def cut(rng: np.random.Generator, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sizes, int [all parts], of the parts into which each group is cut: so many, none empty, at random places.

    An empty group has one part, which is empty.
    """
    first = np.zeros(sizes.sum(), bool)
    first[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
    begins = np.zeros(len(first), int)
    begins[~first] = choose(rng, np.maximum(sizes - 1, 0), counts - 1)
    # The groups before the n-th have n parts more than these begins, for their first ones are not among them.
    part = np.cumsum(begins) + np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(part, minlength=counts.sum())


def corrupt_spans(
    rng: np.random.Generator,
    tokens: np.ndarray,
    lengths: np.ndarray,
    hidden: np.ndarray,
    spans: np.ndarray,
    sentinels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """T5's span corruption (1910.10683; `random_spans_noise_mask` and what follows it in the published code).

    Kept and hidden spans take turns in a piece, and a kept one is the first. In the inputs the next sentinel stands
    for each hidden span; in the targets, before it. (As in the code, and not in the paper's figure, no sentinel ends
    the targets.) Of a piece of one token nothing is hidden, and its targets are the first sentinel.

    Args:
        rng: cuts the spans.
        tokens: of the text.
        lengths: int [pieces].
        hidden: int [pieces]: tokens to hide, by `corrupted_lengths`.
        spans: int [pieces]: in so many spans.
        sentinels: their ids, in order; as many as `spans` has at most.

    Returns:
        The inputs and the targets of all pieces, one piece after the other.
    """
    kept_sizes, hidden_sizes = cut(rng, lengths - hidden, spans), cut(rng, hidden, spans)
    sizes = np.stack([kept_sizes, hidden_sizes], axis=1).ravel()
    is_hidden = np.repeat(np.tile([False, True], len(kept_sizes)), sizes)
    ids = sentinels[np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)]
    hides = hidden_sizes > 0
    inputs = np.insert(tokens[~is_hidden], np.cumsum(kept_sizes)[hides], ids[hides])
    targets = np.insert(tokens[is_hidden], np.cumsum(hidden_sizes) - hidden_sizes, ids)
    return inputs, targets


def infill(
    rng: np.random.Generator,
    tokens: np.ndarray,
    lengths: np.ndarray,
    hidden: np.ndarray,
    spans: np.ndarray,
    mask_id: int,
) -> np.ndarray:
    """Inputs of BART's text infilling (1910.13461): one mask for each span, and one for nothing where a span is empty.

    The lengths of spans are Poisson's, given how many there are and how much they hide together: independent Poisson
    numbers whose sum is known are multinomial. So it is known before how long the inputs are. Spans lie anywhere
    between the kept tokens, and may touch.
    """
    slots = lengths - hidden + spans
    is_span = choose(rng, slots, spans)
    first_span = np.cumsum(spans) - spans
    span = np.repeat(first_span, hidden) + (rng.random(hidden.sum()) * np.repeat(spans, hidden)).astype(int)
    sizes = np.ones(len(is_span), int)
    sizes[is_span] = np.bincount(span, minlength=spans.sum())
    inputs = np.full(len(is_span), mask_id, tokens.dtype)
    inputs[~is_span] = tokens[(np.cumsum(sizes) - sizes)[~is_span]]
    return inputs


def mask(
    rng: np.random.Generator,
    tokens: np.ndarray,
    words: np.ndarray,
    text: np.ndarray,
    noise: float,
    mask_id: int,
    ordinary: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (1810.04805): of the tokens to tell, 80 % are masked, 10 % are random ones, 10 % stay.

    The share `noise` of the row's text is to tell, at least one token of it: to the token where words are tokens, else
    as near as words that are chosen whole come to it.

    Args:
        rng: chooses words and what becomes of their tokens.
        tokens: of the row.
        words: int [tokens], from 0, not falling: which word each is of.
        text: bool [tokens]: those that may be to tell.
        noise: share of them.
        mask_id: the mask.
        ordinary: ids of which the random tokens are.

    Returns:
        The inputs, and which of them are to tell.
    """
    sizes = np.bincount(words, weights=text)
    order = np.argsort(rng.random(len(sizes)))
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = np.empty(len(sizes), bool)
    taken[order] = (before + sizes[order] / 2 < sizes.sum() * noise) | (before == 0)
    tell = taken[words] & text
    fate = rng.random(len(tokens))
    random = ordinary[rng.integers(len(ordinary), size=len(tokens))]
    inputs = np.where(tell & (fate < 0.8), mask_id, tokens)
    return np.where(tell & (fate >= 0.8) & (fate < 0.9), random, inputs), tell
