"""Beam search: the likeliest texts rather than drawn ones, with the semantics of transformers' `generate`, of its
`num_beams`, `length_penalty` and `early_stopping`.

Each step extends every beam by every token and keeps the likeliest of the extensions. Of the `beams` best, those that
end are finished texts, whose scores are divided by their length to a penalty; the best that do not end are the next
beams, whose caches are gathered on the device. A row is closed when its beams can no longer improve on what is
finished, so that what it gives does not depend on the rows beside it.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from jaxllm.common.trees import Tree
from jaxllm.generation.config import BeamConfig
from jaxllm.generation.generate import Generation, Generator, Method, Timing
from jaxllm.generation.prefill import power_of_two, read
from jaxllm.generation.text import Finish, TextStream
from jaxllm.models.cache import Cache
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, decode

NONE = -1
"""Stands for a token after the end of a text."""


class Rules(NamedTuple):
    """A `BeamConfig` and what depends on the prompts, as arrays: one program serves all of them."""

    limits_B: jax.Array
    """Tokens that a row may have."""
    ends_E: jax.Array
    """Tokens that end a text."""
    length_penalty: jax.Array
    stops_when_full: jax.Array
    waits_for_any_length: jax.Array


class Finished(NamedTuple):
    """The best texts of each row that have ended, best first; and whether it goes on."""

    tokens_BWL: jax.Array
    scores_BW: jax.Array
    """Minus infinity where there is none."""
    is_open_B: jax.Array


class Beams(NamedTuple):
    """The texts that go on, best first: `W` beams in each of `B` rows."""

    cache: Cache
    """Of `B W` rows."""
    tokens_BWL: jax.Array
    scores_BW: jax.Array
    """Log-probabilities; minus infinity where there are fewer texts than beams."""
    step: jax.Array
    """Tokens that each has."""


def beam_search(
    generator: Generator, prompts: Sequence[str], max_new_tokens: int, config: BeamConfig
) -> list[list[Generation]]:
    """The likeliest continuations of each prompt, or answers to it: the `best` of them, best first, with their scores.

    Args:
        generator: holds the model.
        prompts: as for `Generator.generate`; all are searched in one batch.
        max_new_tokens: for each text.
        config: how it is searched.

    Raises:
        UserError: a setting out of its range, or a prompt that is too long.
    """
    began = time.perf_counter()
    ids = generator.ids(prompts)
    found, (compiled, first) = _searched(generator, ids, max_new_tokens, config)
    timing = Timing(
        compile_seconds=compiled - began,
        prompt_tokens=sum(map(len, ids)),
        prefill_seconds=first - compiled,
        new_tokens=sum(len(best[0][0]) - 1 for best in found),
        decode_seconds=time.perf_counter() - first,
    )

    def told(prompt: Sequence[int], tokens: list[int], score: float) -> Generation:
        before, limit = generator.before(prompt), generator.limit(prompt, max_new_tokens)
        text = TextStream(generator.tokenizer, before, limit, ends=generator.ends)
        for token in tokens:
            text.feed(token)
        return Generation(text.text, tuple(tokens), cast(Finish, text.finish), timing, score)

    return [[told(prompt, *text) for text in texts] for prompt, texts in zip(ids, found, strict=True)]


def beam_tokens(
    generator: Generator, prompts: Sequence[Sequence[int]], max_new_tokens: int, config: BeamConfig
) -> list[list[tuple[list[int], float]]]:
    """`beam_search` from token ids to token ids, an end included, and scores."""
    return _searched(generator, prompts, max_new_tokens, config)[0]


def _searched(
    generator: Generator, prompts: Sequence[Sequence[int]], max_new_tokens: int, config: BeamConfig
) -> tuple[list[list[tuple[list[int], float]]], tuple[float, float]]:
    """What was found, and when programs and prefill were done."""
    config.check()
    W, L = config.beams, power_of_two(max_new_tokens)
    rules = Rules(
        limits_B=jnp.asarray([generator.limit(row, max_new_tokens) for row in prompts], jnp.int32),
        ends_E=jnp.asarray(sorted(generator.ends or [generator.tokenizer.eos_id]), jnp.int32),
        length_penalty=jnp.float32(config.length_penalty),
        stops_when_full=jnp.asarray(config.early_stopping is True),
        waits_for_any_length=jnp.asarray(config.early_stopping == "never"),
    )
    method = Method(("beams", W, L), functools.partial(_prefill, W, L), _step)
    steps = generator.steps(method, prompts, max_new_tokens, rules)
    compiled = first = time.perf_counter()
    for step, finished in enumerate(steps):
        if step == 0:
            first = time.perf_counter()
        if not finished.is_open_B.any():
            break
    rows = zip(finished.tokens_BWL, finished.scores_BW, strict=True)
    return [
        [
            (tokens[tokens != NONE].tolist(), float(score))
            for tokens, score in zip(*(x[: config.best] for x in row), strict=True)
            if score > -np.inf
        ]
        for row in rows
    ], (compiled, first)


def _prefill(
    W: int,
    L: int,
    model: Transformer,
    slots: int,
    params: Tree,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    rules: Rules,
) -> tuple[Finished, Beams]:
    """The first tokens of `W` beams a row, with room for `L`. Each prompt is read once."""
    B = len(tokens_BP)
    hidden_BD, cache, _ = read(model, slots, params, tokens_BP, lengths_B)
    hidden, cache = jax.tree.map(lambda x: repeat(x, "B ... -> (B W) ...", W=W), (hidden_BD, cache))
    none_BWL = jnp.full((B, W, L), NONE, jnp.int32)
    # All beams are one text as yet.
    scores_BW = jnp.tile(jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf), (B, 1))
    beams = Beams(cache, none_BWL, scores_BW, jnp.int32(0))
    finished = Finished(none_BWL, jnp.full((B, W), -jnp.inf), jnp.ones(B, bool))
    return _advance(head_logits(params, hidden, model.config), finished, beams, rules)


def _step(model: Transformer, params: Tree, finished: Finished, beams: Beams, rules: Rules) -> tuple[Finished, Beams]:
    """One more token of each beam."""
    last = jax.lax.dynamic_index_in_dim(beams.tokens_BWL, beams.step - 1, axis=2)
    hidden, cache, _ = decode(model, params, rearrange(last, "B W 1 -> (B W) 1"), cache=beams.cache)
    assert cache is not None
    return _advance(head_logits(params, hidden[:, 0], model.config), finished, beams._replace(cache=cache), rules)


def _advance(logits: jax.Array, finished: Finished, beams: Beams, rules: Rules) -> tuple[Finished, Beams]:
    """What ends and what goes on, given the logits `[B W, V]` of the next token of each beam."""
    W, V, length = beams.tokens_BWL.shape[1], logits.shape[-1], beams.step + 1
    totals_BWV = rearrange(jax.nn.log_softmax(logits), "(B W) V -> B W V", W=W) + beams.scores_BW[..., None]
    # Each beam may end in each of the tokens that end a text; so many more leave enough that go on.
    C = min((1 + rules.ends_E.size) * W, W * V)
    totals_BC, places_BC = jax.lax.top_k(rearrange(totals_BWV, "B W V -> B (W V)"), C)
    parents_BC, chosen_BC = places_BC // V, places_BC % V
    tokens_BCL = _of(beams.tokens_BWL, parents_BC).at[:, :, beams.step].set(chosen_BC)
    ends_BC = jnp.isin(chosen_BC, rules.ends_E) | (length >= rules.limits_B)[:, None]

    scores_BW, kept_BW = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, totals_BC), W)
    cache = _gathered(beams.cache, _of(parents_BC, kept_BW))
    beams = Beams(cache, _of(tokens_BCL, kept_BW), scores_BW, length)

    counts_BC = ends_BC & (jnp.arange(C) < W) & finished.is_open_B[:, None]
    ended_BC = jnp.where(counts_BC, totals_BC / _power(length, rules), -jnp.inf)
    best_BW, kept_BW = jax.lax.top_k(jnp.concatenate([finished.scores_BW, ended_BC], axis=1), W)
    tokens_BWL = _of(jnp.concatenate([finished.tokens_BWL, tokens_BCL], axis=1), kept_BW)

    farthest_B = jnp.where(rules.waits_for_any_length & (rules.length_penalty > 0), rules.limits_B, length)
    worst_B = best_BW[:, -1]
    can_improve_B = scores_BW[:, 0] / _power(farthest_B, rules) > worst_B
    is_full_B = rules.stops_when_full & (worst_B > -jnp.inf)
    return Finished(tokens_BWL, best_BW, finished.is_open_B & can_improve_B & ~is_full_B), beams


def _power(length: jax.Array, rules: Rules) -> jax.Array:
    return length.astype(jnp.float32) ** rules.length_penalty


def _of(x: jax.Array, places: jax.Array) -> jax.Array:
    """The entries of each row's second axis at its places."""
    return jax.vmap(lambda row, at: row[at])(x, places)


def _gathered(cache: Cache, parents_BW: jax.Array) -> Cache:
    """The cache of each beam's parent; beams of a row share what they remember of an encoder."""
    B, W = parents_BW.shape
    rows = (jnp.arange(B)[:, None] * W + parents_BW).reshape(-1)

    def take(x: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[rows], x)

    return cache._replace(keys=take(cache.keys), values=take(cache.values), length=take(cache.length))
