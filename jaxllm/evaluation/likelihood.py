"""How likely a decoder finds given continuations of given contexts.

What is read is planned so that little is read twice. A context with one continuation, or whose continuations differ in
their last tokens only, is one text, and such texts share rows (`generation/rows.py`). A context whose continuations
differ earlier is read once into a cache, and each continuation after a copy of that. The head is taken for the tokens
that are scored alone, a chunk of them at a time.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig, UserError
from jaxllm.generation.rows import laid, packed, tokens_at_once
from jaxllm.models.cache import Cache, empty_cache
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, cast_for_use, decode, dtype_for_use

HEAD_CHUNK = {"cpu": 128}
"""Scored tokens whose logits exist at once, by platform."""

HEAD_CHUNK_ELSEWHERE = 1024

SLOTS = {"cpu": 4096}
"""Places of all cached contexts of one call, a copy for each continuation, by platform."""

SLOTS_ELSEWHERE = 16_384


class Request(NamedTuple):
    """What is to be scored: token ids, at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """Of a continuation."""

    log_prob: float
    """The sum of its tokens' log-probabilities, in nats."""
    is_greedy: bool
    """No other token is likelier than each of its own, so that the greedy choice would have written it."""


class _Pick(NamedTuple):
    """A token that is scored: where the hidden state stands that tells it, what it is, and of which request."""

    row: int
    column: int
    target: int
    request: int


class _Text(NamedTuple):
    """Tokens that are read, and what of them is scored; rows of these picks are 0."""

    tokens: list[int]
    picks: list[_Pick]


class _Family(NamedTuple):
    """A context that is read once, and the requests of its continuations."""

    context: list[int]
    requests: list[int]


class Scorer:
    """Scores continuations with one decoder. Programs are compiled when first needed, and kept."""

    def __init__(self, config: TransformerConfig, params: Tree, dtype: Any = None, virtual: int = 0):
        """
        Args:
            config: the model's shape.
            params: its parameters; they are copied onto the first local device.
            dtype: of weights and products; none means float32 on CPU and bfloat16 elsewhere.
            virtual: virtual tokens that the parameters have, and every context begins with.

        Raises:
            UserError: the model is no decoder.
        """
        if config.architecture != "decoder":
            raise UserError(f"model.architecture = '{config.architecture}': likelihoods are of texts of a decoder")
        device = jax.local_devices()[0]
        dtype = dtype_for_use(dtype)
        self.most = config.max_positions - virtual
        """Tokens of a text that the model reads at once."""
        self._virtual = range(config.vocab_size, config.vocab_size + virtual)
        self._at_once = tokens_at_once(device.platform)
        self._slots = SLOTS.get(device.platform, SLOTS_ELSEWHERE)
        self._chunk = HEAD_CHUNK.get(device.platform, HEAD_CHUNK_ELSEWHERE)
        self._config = config
        model = Transformer(config, dtype=dtype)
        params = jax.device_put(params, SingleDeviceSharding(device))
        self._params = jax.jit(cast_for_use, static_argnums=1)(params, dtype)
        self._read = jax.jit(lambda params, *rows: decode(model, params, *rows).hidden)
        self._read_contexts = jax.jit(functools.partial(_read_contexts, model))
        self._go_on = jax.jit(functools.partial(_go_on, model))
        self._head = jax.jit(functools.partial(_head, config))

    def score(self, requests: Sequence[Request], on_done: Callable[[int], None] = lambda done: None) -> list[Score]:
        """A score for each request; `on_done` is called with how many tokens have one.

        Raises:
            UserError: a request without a token, with more than the model reads, or with a token that it does not have.
        """
        _check(requests, self._config, self.most)
        requests = [Request([*self._virtual, *context], continuation) for context, continuation in requests]
        sums, is_greedy, done = np.zeros(len(requests)), np.ones(len(requests), bool), 0
        for (numbers, log_probs, hits), _ in pairwise(chain(self._running(requests), (None,))):  # one late
            n = len(numbers)
            np.add.at(sums, numbers, np.asarray(log_probs, np.float64)[:n])
            np.logical_and.at(is_greedy, numbers, np.asarray(hits)[:n])
            done += n
            on_done(done)
        return [Score(float(total), bool(greedy)) for total, greedy in zip(sums, is_greedy, strict=True)]

    def _running(self, requests: Sequence[Request]) -> Iterator[Any]:
        """Chunks of scored tokens: their requests, and what is computed of them."""
        texts, families = _planned(requests)
        yield from self._texts(texts)
        left = sorted(families, key=lambda family: len(family.context))
        while left:  # the longest first, so that memory fails at once or never
            size = _rows_of(_power_of_two(len(left[-1].context)), self._at_once, self._slots)
            left, batch = left[:-size], left[-size:]
            yield from self._families(batch, requests)

    def _texts(self, texts: Sequence[_Text]) -> Iterator[Any]:
        lengths = np.array([len(text.tokens) for text in texts], np.int64)
        for length, rows in reversed(packed(lengths, self._config.width).items()) if texts else ():
            size = max(1, self._at_once // length)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                hidden = self._read(self._params, *laid([text.tokens for text in texts], batch, size, length))
                yield from self._picked(hidden, list(_moved(texts, batch)))

    def _families(self, batch: Sequence[_Family], requests: Sequence[Request]) -> Iterator[Any]:
        """Reads contexts, scores the first tokens of their continuations, and goes on with each."""
        contexts, lengths = _padded([family.context for family in batch])
        last, cache = self._read_contexts(self._params, contexts, lengths)
        members = [(row, number) for row, family in enumerate(batch) for number in family.requests]
        firsts = [_Pick(row, 0, requests[number].continuation[0], number) for row, number in members]
        yield from self._picked(last, firsts)
        rest = [(row, number, requests[number].continuation) for row, number in members]
        rest = sorted((each for each in rest if len(each[2]) > 1), key=lambda each: len(each[2]))
        while rest:
            width = _power_of_two(len(rest[-1][2]) - 1)
            size = min(_rows_of(width, self._at_once), _rows_of(contexts.shape[1] + width, self._slots))
            rest, group = rest[:-size], rest[-size:]
            tokens, _ = _padded([ids[:-1] for _, _, ids in group])
            parents = np.zeros(len(tokens), np.int32)
            parents[: len(group)] = [row for row, _, _ in group]
            picks = [
                _Pick(row, column, target, number)
                for row, (_, number, ids) in enumerate(group)
                for column, target in enumerate(ids[1:])
            ]
            yield from self._picked(self._go_on(self._params, cache, parents, tokens), picks)

    def _picked(self, hidden: jax.Array, picks: Sequence[_Pick]) -> Iterator[Any]:
        for start in range(0, len(picks), self._chunk):
            part = np.array(picks[start : start + self._chunk], np.int32)
            numbers = part[:, 3]
            places = np.zeros((3, self._chunk), np.int32)
            places[:, : len(part)] = part[:, :3].T
            yield numbers, *self._head(self._params, hidden, *places)


def _check(requests: Sequence[Request], config: TransformerConfig, most: int) -> None:
    for number, (context, continuation) in enumerate(requests, 1):
        if not context or not continuation:
            raise UserError(f"request {number}: a context and a continuation have at least one token each")
        if (read := len(context) + len(continuation) - 1) > most:
            raise UserError(f"request {number} has {read} tokens to read; the model reads {most}")
        if (largest := max(*context, *continuation)) >= config.vocab_size:
            raise UserError(
                f"request {number} has token {largest}, but the model's vocabulary has {config.vocab_size}; the "
                "tokenizer is not its own"
            )


def _planned(requests: Sequence[Request]) -> tuple[list[_Text], list[_Family]]:
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        by_context[tuple(request.context)].append(number)
    texts, families = [], []
    for context, numbers in by_context.items():
        read = {tuple(requests[number].continuation[:-1]) for number in numbers} - {()}
        if len(read) > 1:
            families.append(_Family([*context], numbers))
            continue
        picks = [
            _Pick(0, len(context) - 1 + place, target, number)
            for number in numbers
            for place, target in enumerate(requests[number].continuation)
        ]
        texts.append(_Text([*context, *(read.pop() if read else ())], picks))
    return texts, families


def _moved(texts: Sequence[_Text], rows: Sequence[Sequence[int]]) -> Iterator[_Pick]:
    """The picks of texts, in the rows in which they stand one after another."""
    for row, members in enumerate(rows):
        start = 0
        for text in members:
            for pick in texts[text].picks:
                yield pick._replace(row=row, column=start + pick.column)
            start += len(texts[text].tokens)


def _power_of_two(n: int) -> int:
    """The smallest one that is at least `n`, and 8."""
    return max(8, 1 << (n - 1).bit_length())


def _rows_of(length: int, *places: int) -> int:
    """How many rows of that length there may be: a power of two."""
    return 1 << (max(1, min(places) // length).bit_length() - 1)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, T]`, of which both are powers of two so that programs are few, and lengths `[B]`."""
    lengths = np.ones(1 << (len(rows) - 1).bit_length(), np.int32)
    lengths[: len(rows)] = [len(row) for row in rows]
    tokens = np.zeros((len(lengths), _power_of_two(max(map(len, rows)))), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def _read_contexts(
    model: Transformer, params: Tree, tokens_BP: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """The last hidden state of each context, `[B, 1, D]`, and the cache after it."""
    B, P = tokens_BP.shape
    out = decode(model, params, tokens_BP, cache=empty_cache(model.config, B, P, model.dtype))
    assert out.cache is not None
    last = jnp.take_along_axis(out.hidden, lengths_B[:, None, None] - 1, axis=1)
    return last, out.cache._replace(length=lengths_B)  # the slots of padding are free again


def _go_on(model: Transformer, params: Tree, cache: Cache, parents_R: jax.Array, tokens_RC: jax.Array) -> jax.Array:
    """Hidden states `[R, C, D]` of continuations, each after the context in that row of the cache."""
    more = (0, tokens_RC.shape[1])
    keys = jnp.pad(cache.keys[:, parents_R], ((0, 0),) * 4 + (more,))
    values = jnp.pad(cache.values[:, parents_R], ((0, 0),) * 3 + (more, (0, 0)))
    return decode(model, params, tokens_RC, cache=Cache(keys, values, cache.length[parents_R])).hidden


def _head(
    config: TransformerConfig,
    params: Tree,
    hidden_BTD: jax.Array,
    rows_N: jax.Array,
    columns_N: jax.Array,
    targets_N: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each target after the token in that place, and whether none is likelier."""
    logits_NV = head_logits(params, hidden_BTD[rows_N, columns_N], config)
    own_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=1)[:, 0]
    # Not by jax.nn.log_softmax, which makes all V of them, nor by an argmax: on a CPU that takes half as long again.
    top_N = jnp.max(logits_NV, axis=1)
    log_z_N = top_N + jnp.log(jnp.sum(jnp.exp(logits_NV - top_N[:, None]), axis=1))
    return own_N - log_z_N, own_N == top_N


def windows(ids: Sequence[int], window: int, stride: int) -> list[Request]:
    """The requests by which a text is scored in windows of `window` tokens, each `stride` after the one before.

    Every window predicts its tokens but the first, as far as none before it has. Without overlap (`stride` as large as
    `window`) the first token of each is thus never predicted.

    Raises:
        UserError: numbers that will not do.
    """
    if window < 2:
        raise UserError(f"--window: expected 2 or more, got {window}")
    if not 0 < stride <= window:
        raise UserError(f"--stride: expected 1 to {window} (--window), got {stride}")
    requests, done = [], 0
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        first = max(start + 1, done)
        if first < end:
            requests.append(Request(ids[start:first], ids[first:end]))
        done = end
        if end == len(ids):
            break
    return requests


def encode_pair(encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of both parts of one text, which is encoded whole; spaces at the end of the context begin the continuation,
    since tokens begin with theirs. As lm-eval's `TemplateLM._encode_pair`."""
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    before = encode(context)
    return before, encode(context + continuation)[len(before) :]
