"""Generation: one compiled prefill, then one compiled step a token, whatever the prompts' lengths and settings.

Prompts are padded on the right to a power of two and go through the model at once; the cache's lengths are then
set to the true ones, which frees the padding's slots. A step is dispatched before the tokens of the step before
it are read, so the device never waits for the host to decode and print; the last step of a batch is then
sometimes one too many, and is thrown away, as is whatever a row makes after its end.

Weights are held in the form in which a step reads them, one tree a layer, and in the compute type: bfloat16 on
accelerators and float32 on CPU. (bfloat16 would halve the bytes, but XLA on CPU widens whole matrices for each
product of few rows: a token then takes 2 to 5 times as long, on jax 0.10 and 0.12 alike.)
"""

import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig, UserError
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.sampling import Settings, sample, settings_of
from jaxllm.generation.text import Finish, TextStream
from jaxllm.models.cache import Cache, empty_cache
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, cast_for_use, decode, per_layer

AS_THE_MODEL_SAYS = SamplingConfig()
"""Draws from the model's own distribution."""

SMALLEST_BUCKET = 16
"""Tokens to which the shortest prompts are padded."""


@dataclass(frozen=True)
class Timing:
    """What a batch took, compilation apart."""

    compile_seconds: float
    """0 when the programs were there already."""
    prompt_tokens: int
    """Of all rows, without padding."""
    prefill_seconds: float
    """Until the first token of each row is read."""
    new_tokens: int
    """Of all rows, up to their ends, without the first of each."""
    decode_seconds: float
    """After that, text included."""

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_rate(self) -> float:
        """New tokens a second; 0 if there was but one a row."""
        return self.new_tokens / self.decode_seconds if self.new_tokens else 0.0


@dataclass(frozen=True)
class Generation:
    """What a prompt was continued with."""

    text: str
    """Without the prompt, the stop string and the token that ends it."""
    tokens: tuple[int, ...]
    """All that were generated, including the one that ends the text or those that spell the stop string."""
    finish: Finish
    """Why it ended."""
    timing: Timing
    """Of the batch that it was made in."""


class State(NamedTuple):
    """What a step hands to the next, on the device; consumed by it."""

    cache: Cache
    seen_BV: jax.Array
    """Tokens in each row's text so far, prompt included."""
    keys_B: jax.Array
    """Each row's random stream."""
    step: jax.Array
    """Tokens generated so far; names the key of the next one."""


Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens `[B, P]`, padded; lengths `[B]`; seeds `[B]`."""


class Generator:
    """Continues prompts with one model. Programs are compiled when first needed, and kept."""

    def __init__(
        self,
        config: TransformerConfig,
        params: Tree,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        ends: Collection[int] | None = None,
        dtype: Any = None,
    ):
        """
        Args:
            config: the model's shape.
            params: its parameters, as trained; they are copied onto the first local device.
            tokenizer: its tokenizer.
            max_length: tokens of a prompt and its continuation, at most; none means `config.max_positions`.
            ends: tokens that end a text; none means the end-of-document token.
            dtype: of weights, products and cache; none means the platform's (see above).

        Raises:
            UserError: `max_length` is more than the model can read.
        """
        self.max_length = config.max_positions if max_length is None else max_length
        if not 0 < self.max_length <= config.max_positions:
            raise UserError(f"max_length: expected 1 to {config.max_positions} (max_positions), got {max_length}")
        device = jax.local_devices()[0]
        dtype = dtype or (jnp.float32 if device.platform == "cpu" else jnp.bfloat16)
        self.tokenizer = tokenizer
        self.ends = ends
        self.programs: dict[tuple[Any, ...], Any] = {}
        """By name and sizes."""
        self._model = Transformer(config, dtype=dtype)
        # Not `device`, which would leave the type of an array from a mesh of one device as it is: cut by its axes.
        params = jax.device_put(params, SingleDeviceSharding(device))
        self._params = jax.jit(_as_steps_read_them, static_argnums=1)(params, dtype)

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampling: SamplingConfig = AS_THE_MODEL_SAYS,
        *,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
        on_text: Callable[[int, str], None] = lambda row, piece: None,
    ) -> list[Generation]:
        """Continues each prompt, all in one batch.

        Args:
            prompts: texts; each is the beginning of a document.
            max_new_tokens: for each row; fewer where `max_length` comes first.
            sampling: how tokens are chosen.
            stop: strings that end a row; they are not part of its text.
            seeds: one for each row, below 2**32; none counts them from 0. In float32 a row's text follows from its
                prompt and its seed, whatever the other rows are; bfloat16 rounds otherwise in a batch of another
                shape, and a draw that was close may then fall otherwise.
            on_text: called with a row's number and a piece of its text as soon as that is final.

        Raises:
            UserError: a setting out of its range, or a prompt that is too long.
        """
        _check_stop(stop)
        ids = self._ids(prompts)
        began = time.perf_counter()
        steps = self.tokens(ids, max_new_tokens, sampling, seeds)
        compiled = first = time.perf_counter()
        rows = [TextStream(self.tokenizer, row, self.limit(row, max_new_tokens), stop, self.ends) for row in ids]
        for step, tokens in enumerate(steps):
            if step == 0:
                first = time.perf_counter()
            for i, row in enumerate(rows):
                if piece := row.feed(int(tokens[i])):
                    on_text(i, piece)
            if all(row.finish for row in rows):
                break
        timing = Timing(
            compile_seconds=compiled - began,
            prompt_tokens=sum(map(len, ids)),
            prefill_seconds=first - compiled,
            new_tokens=sum(len(row.tokens) - 1 for row in rows),
            decode_seconds=time.perf_counter() - first,
        )
        return [Generation(row.text, tuple(row.tokens), cast(Finish, row.finish), timing) for row in rows]

    def check(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> None:
        """Passes what `generate` can continue.

        Raises:
            UserError: a stop string without a character, no room for a new token, or a prompt that is too long.
        """
        _check_stop(stop)
        self._check(self._ids(prompts), max_new_tokens)

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [[self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] for prompt in prompts]

    def tokens(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig = AS_THE_MODEL_SAYS,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[np.ndarray]:
        """The next token of each row, `[B]`, until no row may have more; where a row ends, the caller says.

        Prompts are token ids, taken as they are. Args and Raises as for `generate`; this checks and compiles
        before it returns.
        """
        sampling.check()
        self._check(prompts, max_new_tokens)
        inputs = *_padded(prompts, self.max_length), _checked(seeds, len(prompts))
        limit = max(self.limit(row, max_new_tokens) for row in prompts)
        # Of the bucket, not of the longest prompt: prompts of one bucket share both programs.
        slots = min(_power_of_two(inputs[0].shape[1] + max_new_tokens - 1), self.max_length)
        return self._run(self._compiled(inputs, slots), inputs, settings_of(sampling), limit)

    def _run(self, programs: tuple[Any, Any], inputs: Inputs, settings: Settings, limit: int) -> Iterator[np.ndarray]:
        prefill, decode = programs
        tokens, state = prefill(self._params, *inputs, settings)
        for _ in range(limit - 1):
            following, state = decode(self._params, tokens, state, settings)
            yield np.asarray(tokens)
            tokens = following
        yield np.asarray(tokens)

    def _compiled(self, inputs: Inputs, slots: int) -> tuple[Any, Any]:
        """The prefill for such inputs into a cache of `slots` slots, and the step that goes on from there."""
        B, P = inputs[0].shape
        names = ("prefill", B, P, slots), ("decode", B, slots)
        args = self._params, *inputs, settings_of(AS_THE_MODEL_SAYS)
        prefill = jax.jit(functools.partial(_prefill, self._model, slots))
        if names[0] not in self.programs:
            self.programs[names[0]] = prefill.lower(*args).compile()
        if names[1] not in self.programs:
            decode = jax.jit(functools.partial(_decode, self._model), donate_argnums=2)
            made = jax.eval_shape(prefill, *args)
            self.programs[names[1]] = decode.lower(self._params, *made, args[-1]).compile()
        return self.programs[names[0]], self.programs[names[1]]

    def limit(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Tokens that this row may have. The last one needs no room, since the model does not read it."""
        return min(max_new_tokens, self.max_length - len(prompt) + 1)

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected 1 or more, got {max_new_tokens}")
        if not prompts:
            raise UserError("prompts: expected at least one, got none")
        for i, row in enumerate(prompts, 1):
            if not 0 < len(row) <= self.max_length:
                raise UserError(
                    f"prompt {i} has {len(row)} tokens; expected 1 to {self.max_length}, which is what the model "
                    "reads (max_positions) or the max_length that was set"
                )
            if max(row) >= (size := self._model.config.vocab_size):
                raise UserError(
                    f"prompt {i} has token {max(row)}, but the model's vocabulary has {size}; "
                    "the tokenizer is not its own"
                )


def _check_stop(stop: Sequence[str]) -> None:
    if "" in stop:
        raise UserError("stop: a stop string has at least one character")


def _padded(prompts: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, P]`, padded on the right, and lengths `[B]`."""
    lengths = np.array([len(row) for row in prompts], np.int32)
    tokens = np.zeros((len(prompts), min(_power_of_two(max(map(len, prompts))), most)), np.int32)
    for i, row in enumerate(prompts):
        tokens[i, : len(row)] = row
    return tokens, lengths


def _as_steps_read_them(params: Tree, dtype: Any) -> Tree:
    params = cast_for_use(params, dtype)
    return {**params, "layers": per_layer(params["layers"])}


def _prefill(
    model: Transformer,
    slots: int,
    params: Tree,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    settings: Settings,
) -> tuple[jax.Array, State]:
    """The first token of each row, and a cache of `slots` slots."""
    B, P = tokens_BP.shape
    empty = empty_cache(model.config, B, P, model.dtype)
    cache = Cache(per_layer(empty.keys), per_layer(empty.values), empty.length)
    hidden, filled, _ = decode(model, params, tokens_BP, cache=cache)
    assert filled is not None
    free = slots - P
    keys = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, free))) for x in filled.keys)
    values = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, free), (0, 0))) for x in filled.values)
    rows, V = jnp.arange(B), model.config.vocab_size
    real_BP = jnp.arange(P) < lengths_B[:, None]
    seen = jnp.zeros((B, V), bool).at[rows[:, None], jnp.where(real_BP, tokens_BP, V)].set(True, mode="drop")
    state = State(Cache(keys, values, lengths_B), seen, jax.vmap(jax.random.key)(seeds_B), jnp.int32(0))
    return _choose(model, params, hidden[rows, lengths_B - 1], state, settings)


def _decode(
    model: Transformer, params: Tree, tokens_B: jax.Array, state: State, settings: Settings
) -> tuple[jax.Array, State]:
    """The token after `tokens`."""
    hidden, cache, _ = decode(model, params, tokens_B[:, None], cache=state.cache)
    assert cache is not None
    return _choose(model, params, hidden[:, 0], state._replace(cache=cache), settings)


def _choose(
    model: Transformer, params: Tree, hidden_BD: jax.Array, state: State, settings: Settings
) -> tuple[jax.Array, State]:
    logits = head_logits(params, hidden_BD, model.config)
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, state.step)
    tokens = sample(logits, state.seen_BV, keys, settings)
    seen = state.seen_BV.at[jnp.arange(tokens.size), tokens].set(True)
    return tokens, state._replace(seen_BV=seen, step=state.step + 1)


def _power_of_two(n: int) -> int:
    """The smallest one that is at least `n` and `SMALLEST_BUCKET`."""
    return max(SMALLEST_BUCKET, 1 << (n - 1).bit_length())


def _checked(seeds: Sequence[int] | None, rows: int) -> np.ndarray:
    seeds = range(rows) if seeds is None else seeds
    if len(seeds) != rows or not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seeds: expected {rows} from 0 to 4294967295, got {list(seeds)}")
    return np.array(seeds, np.uint32)
