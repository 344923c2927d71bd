"""The next token from logits `[B, V]`: penalty, temperature, top-k, top-p, min-p and the draw, in this order.

Definitions and order are those of transformers' logits processors, so that settings carry over. Every setting
is an array to the compiled program, which therefore serves all of them.

Nothing here sorts. Whatever needs an order (the k-th largest logit, the smallest set with mass p, the token at
a quantile) is the largest integer for which a monotone condition holds, found by halving: sums over `[B, V]`
that a CPU does at memory speed, where it would sort 32,000 logits for as long as the whole model takes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.generation.config import SamplingConfig


class Settings(NamedTuple):
    """A `SamplingConfig` as scalars, an int32 and four float32."""

    top_k: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


def settings_of(config: SamplingConfig) -> Settings:
    """What a compiled program takes."""
    floats = (config.temperature, config.top_p, config.min_p, config.repetition_penalty)
    return Settings(jnp.int32(config.top_k), *map(jnp.float32, floats))


def sample(logits_BV: jax.Array, seen_BV: jax.Array, keys_B: jax.Array, settings: Settings) -> jax.Array:
    """Token ids `[B]`, int32.

    Args:
        logits_BV: float32.
        seen_BV: true for tokens that are in the row's text already.
        keys_B: a random key for each row, used up by this call. A row's token depends on its own key alone.
        settings: for all rows. What a setting turns off costs nothing.
    """

    def processed(logits: jax.Array) -> jax.Array:
        logits = logits / settings.temperature
        logits = _if(settings.top_k > 0, lambda x: keep_top_k(x, settings.top_k), logits)
        logits = _if(settings.top_p < 1, lambda x: keep_top_p(x, settings.top_p), logits)
        return _if(settings.min_p > 0, lambda x: keep_min_p(x, settings.min_p), logits)

    logits_BV = _if(
        settings.repetition_penalty != 1, lambda x: penalise(x, seen_BV, settings.repetition_penalty), logits_BV
    )
    return jax.lax.cond(settings.temperature > 0, lambda x: draw(processed(x), keys_B), likeliest, logits_BV)


def penalise(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Makes seen tokens less likely: positive logits are divided by the penalty, negative ones multiplied."""
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def keep_top_k(logits_BV: jax.Array, k: jax.Array | int) -> jax.Array:
    """Minus infinity below the `k`-th largest logit; ties with it stay."""
    ranks = _ranks(logits_BV)
    kth = _largest(lambda c: jnp.sum(ranks >= c, axis=-1, keepdims=True) >= k, ranks.shape[0], bits=32)
    return jnp.where(ranks >= kth, logits_BV, -jnp.inf)


def keep_top_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Minus infinity outside the smallest set with probability `p` or more; of tied tokens the first ones stay."""
    ranks, ids = _ranks(logits_BV), jnp.arange(logits_BV.shape[1], dtype=jnp.uint32)
    probabilities = jax.nn.softmax(logits_BV, axis=-1)

    def mass(chosen: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(chosen, probabilities, 0.0), axis=-1, keepdims=True)

    last = _largest(lambda c: mass(ranks >= c) >= p, ranks.shape[0], bits=32)
    above, tied = ranks > last, ranks == last
    last_id = _largest(lambda c: mass(above | (tied & (ids < c))) < p, ranks.shape[0], ids.size.bit_length())
    return jnp.where(above | (tied & (ids <= last_id)), logits_BV, -jnp.inf)


def keep_min_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Minus infinity for tokens less likely than `p` times the likeliest."""
    return jnp.where(logits_BV >= jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(p), logits_BV, -jnp.inf)


def draw(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """A token for each row with probability softmax(logits): the first whose cumulated mass passes a uniform share."""
    weights = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    ids = jnp.arange(weights.shape[1], dtype=jnp.uint32)
    share = jax.vmap(jax.random.uniform)(keys_B)[:, None] * jnp.sum(weights, axis=-1, keepdims=True)

    # Every cut is summed in one order, so that the mass before it never falls as it moves on. (A parallel
    # cumulative sum can fall, by rounding, and then gives tokens of probability zero.)
    def holds(cut: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(ids < cut, weights, 0.0), axis=-1, keepdims=True) <= share

    token = _largest(holds, weights.shape[0], ids.size.bit_length())
    # The share was made of a sum in another order, which may be larger in its last digit.
    last = jnp.max(jnp.where(weights > 0, ids, 0), axis=-1, keepdims=True)
    return jnp.minimum(token, last)[:, 0].astype(jnp.int32)


def likeliest(logits_BV: jax.Array) -> jax.Array:
    """The first token with the largest logit. (As a maximum and a minimum: XLA's argmax on CPU is ten times slower.)"""
    ids = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)
    is_top = logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_top, ids, ids.size - 1), axis=-1)


def _if(condition: jax.Array, apply: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.cond(condition, apply, lambda x: x, x)


def _ranks(x: jax.Array) -> jax.Array:
    """Float32 as uint32 in the same order: the sign bit set, or, for negative numbers, all bits turned over."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds: Callable[[jax.Array], jax.Array], rows: int, bits: int) -> jax.Array:
    """For each row, `[B, 1]`, the largest uint32 below `2**bits` for which `holds`, which is true up to it; or 0."""

    def halve(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, halve, jnp.zeros((rows, 1), jnp.uint32))
