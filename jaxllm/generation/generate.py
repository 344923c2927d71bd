"""Generation: one compiled prefill, then one compiled step a token, whatever the prompts' lengths and settings.

Prompts are padded on the right to a power of two and go through the model at once; the cache's lengths are then
set to the true ones, which frees the padding's slots (`prefill.py`). A step is dispatched before the tokens of the
step before it are read, so the device never waits for the host to decode and print; the last step of a batch is then
sometimes one too many, and is thrown away, as is whatever a row makes after its end.

Weights are held in the form in which a step reads them, one tree a layer, and in the compute type: bfloat16 on
accelerators and float32 on CPU. There bfloat16 halves the memory. With jax 0.12 and products in hardware a step of two
rows or more takes two thirds of the time; of one row XLA would widen whole matrices at every step, so a lone row gets a
twin. With jax 0.10 a step takes some 5 times as long.
"""

import copy
import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig, UserError
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.generation.adapters import Adapters
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.prefill import padded, power_of_two, prompt_ids, read
from jaxllm.generation.sampling import Settings, sample, settings_of
from jaxllm.generation.text import Finish, TextStream
from jaxllm.models.cache import Cache
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, cast_for_use, decode, dtype_for_use, per_layer

AS_THE_MODEL_SAYS = SamplingConfig()
"""Draws from the model's own distribution."""


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
    score: float | None = None
    """Of a text that was searched for: the sum of its tokens' log-probabilities, by its length to the penalty."""


class State(NamedTuple):
    """What a step hands to the next, on the device; consumed by it."""

    cache: Cache
    seen_BV: jax.Array
    """Tokens in each row's text so far, a decoder's prompt included."""
    keys_B: jax.Array
    """Each row's random stream."""
    step: jax.Array
    """Tokens generated so far; names the key of the next one."""


class Method(NamedTuple):
    """A way to choose tokens: the two functions that are compiled for it. What they `show`, the host may read.

    `prefill(model, slots, params, tokens_BP, lengths_B, *inputs) -> (show, state)` reads prompts;
    `step(model, params, show, state, inputs[-1]) -> (show, state)` goes on, and consumes the state.
    """

    name: tuple[Any, ...]
    """Of its programs, before their sizes."""
    prefill: Callable[..., tuple[Any, Any]]
    step: Callable[..., tuple[Any, Any]]


class Generator:
    """Continues prompts with a decoder, or answers them with an encoder-decoder.

    Programs are compiled when first needed, and kept.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Tree,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        ends: Collection[int] | None = None,
        begin: bool = True,
        virtual: int = 0,
        dtype: Any = None,
    ):
        """
        Args:
            config: the model's shape.
            params: its parameters, as trained; they are copied onto the first local device.
            tokenizer: its tokenizer.
            max_length: tokens of a prompt and its continuation, at most, or of each beside an encoder; none means
                `config.max_positions`.
            ends: tokens that end a text; none means the end-of-document token.
            begin: put the begin-of-document token before a prompt.
            virtual: virtual tokens that the parameters have, and every prompt begins with.
            dtype: of weights, products and cache; none means the platform's.

        Raises:
            UserError: `max_length` is more than the model can read, or the model is but an encoder.
        """
        if config.architecture == "encoder":
            raise UserError("model.architecture = 'encoder': it cannot generate text; a decoder is needed for that")
        if config.architecture == "encoder_decoder" and config.start_token is None:
            config = replace(config, start_token=tokenizer.pad_id)
        self._most = config.max_positions if max_length is None else max_length
        if not virtual < self._most <= config.max_positions:
            low = virtual + 1
            raise UserError(f"max_length: expected {low} to {config.max_positions} (max_positions), got {max_length}")
        self._take_virtual([range(virtual)])
        device = jax.local_devices()[0]
        dtype = dtype_for_use(dtype)
        self._doubles = device.platform == "cpu" and dtype == jnp.bfloat16
        self.tokenizer = tokenizer
        self.ends = ends
        self.begin = begin
        self.continues = config.architecture == "decoder"
        """A text goes on from its prompt, and shares its room; an encoder's prompt is another text."""
        self.programs: dict[tuple[Any, ...], Any] = {}
        """By name and sizes."""
        self._programs_with_adapters: dict[tuple[Any, ...], Any] = {}
        self._model = Transformer(config, dtype=dtype)
        # Not `device`, which would leave the type of an array from a mesh of one device as it is: cut by its axes.
        params = jax.device_put(params, SingleDeviceSharding(device))
        self._params = jax.jit(_as_steps_read_them, static_argnums=1)(params, dtype)

    def with_adapters(self, adapters: Adapters, names: Sequence[str | None]) -> "Generator":
        """The same model, in whose batches each row has the adapter of that name, or none.

        Programs are shared by all that come of one generator, and weights but for the adapters' own.

        Raises:
            UserError: an adapter that is not among them.
        """
        view = copy.copy(self)
        leaves = adapters.of_rows([*names] * (2 if len(names) == 1 and self._doubles else 1))
        view._params = adapters.beside(self._params, cast_for_use(leaves, self._model.dtype))
        view._take_virtual([adapters.virtual[name] for name in names])
        view.programs = self._programs_with_adapters
        return view

    def _take_virtual(self, virtual: Sequence[range]) -> None:
        """Each row's virtual tokens, in turn; what is left for text."""
        self._virtual = virtual
        self.max_length = self._most - max(map(len, virtual))

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
        """Continues each prompt, a text: the beginning of a document, or what an encoder reads. As `generate_from`."""
        options: Any = {"stop": stop, "seeds": seeds, "on_text": on_text}
        return self.generate_from(self.ids(prompts), max_new_tokens, sampling, **options)

    def generate_from(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: SamplingConfig = AS_THE_MODEL_SAYS,
        *,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
        on_text: Callable[[int, str], None] = lambda row, piece: None,
    ) -> list[Generation]:
        """Continues each prompt, all in one batch.

        Args:
            prompts: token ids, taken as they are.
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
        began = time.perf_counter()
        steps = self.tokens(prompts, max_new_tokens, sampling, seeds)
        compiled = first = time.perf_counter()
        rows = [
            TextStream(self.tokenizer, self.before(row), self.limit(row, max_new_tokens), stop, self.ends)
            for row in prompts
        ]
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
            prompt_tokens=sum(map(len, prompts)),
            prefill_seconds=first - compiled,
            new_tokens=sum(len(row.tokens) - 1 for row in rows),
            decode_seconds=time.perf_counter() - first,
        )
        return [Generation(row.text, tuple(row.tokens), cast(Finish, row.finish), timing) for row in rows]

    def check(
        self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = (), numbers: Sequence[int] = ()
    ) -> None:
        """Passes what `generate` can continue. Errors call prompts by `numbers`; without them, from 1.

        Raises:
            UserError: a stop string without a character, no room for a new token, or a prompt that is too long.
        """
        _check_stop(stop)
        self._check(self.ids(prompts), max_new_tokens, numbers)

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, as `tokens` takes them."""
        config = self._model.config
        return [prompt_ids(config, self.tokenizer, prompt, self.begin) for prompt in prompts]

    def before(self, prompt: Sequence[int]) -> Sequence[int]:
        """The tokens that the new ones of this row follow."""
        return prompt if self.continues else [cast(int, self._model.config.start_token)]

    def limit(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Tokens that this row may have. The last one needs no room, since the model does not read it."""
        return min(max_new_tokens, self.max_length - len(self.before(prompt)) + 1)

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
        numbers, rows = _checked(seeds, len(prompts)), len(prompts)
        if rows == 1 and self._doubles:
            prompts, numbers = [*prompts] * 2, np.repeat(numbers, 2)
        steps = self.steps(DRAWING, prompts, max_new_tokens, numbers, settings_of(sampling))
        return (tokens[:rows] for tokens in steps)

    def steps(
        self, method: Method, prompts: Sequence[Sequence[int]], max_new_tokens: int, *inputs: Any
    ) -> Iterator[Any]:
        """What each step of a method shows, until no row may have more. Raises as for `tokens`."""
        self._check(prompts, max_new_tokens)
        size = self._model.config.vocab_size
        read = [[*(size + i for i in own), *row] for own, row in zip(cycle(self._virtual), prompts, strict=False)]
        args = *padded(read, self._most), *inputs
        # Of the bucket, not of the longest prompt: prompts of one bucket share both programs.
        most = args[0].shape[1] if self.continues else 1
        slots = min(power_of_two(most + max_new_tokens - 1), self._most)
        limit = max(self.limit(row, max_new_tokens) for row in prompts)
        return self._run(self._compiled(method, args, slots), args, limit)

    def _run(self, programs: tuple[Any, Any], args: tuple[Any, ...], limit: int) -> Iterator[Any]:
        prefill, step = programs
        show, state = prefill(self._params, *args)
        for _ in range(limit - 1):
            following, state = step(self._params, show, state, args[-1])
            yield jax.tree.map(np.asarray, show)
            show = following
        yield jax.tree.map(np.asarray, show)

    def _compiled(self, method: Method, args: tuple[Any, ...], slots: int) -> tuple[Any, Any]:
        """The prefill for such arguments into a cache of `slots` slots, and the step that goes on from there."""
        B, P = args[0].shape
        memory = () if self.continues else (P,)
        names = (*method.name, "prefill", B, P, slots), (*method.name, "decode", B, slots, *memory)
        prefill = jax.jit(functools.partial(method.prefill, self._model, slots))
        if names[0] not in self.programs:
            self.programs[names[0]] = prefill.lower(self._params, *args).compile()
        if names[1] not in self.programs:
            step = jax.jit(functools.partial(method.step, self._model), donate_argnums=2)
            made = jax.eval_shape(prefill, self._params, *args)
            self.programs[names[1]] = step.lower(self._params, *made, args[-1]).compile()
        return self.programs[names[0]], self.programs[names[1]]

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, numbers: Sequence[int] = ()) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected 1 or more, got {max_new_tokens}")
        if not prompts:
            raise UserError("prompts: expected at least one, got none")
        for i, row in zip(numbers or range(1, len(prompts) + 1), prompts, strict=True):
            if not 0 < len(row) <= self.max_length:
                raise UserError(
                    f"prompt {i} has {len(row)} tokens; expected 1 to {self.max_length}, which is what the model "
                    "reads (max_positions) or the max_length that was set"
                )
            if max(row) >= (size := self._model.config.vocab_size):
                unknown = f"prompt {i} has token {max(row)}, but the model's vocabulary has {size}"
                raise UserError(f"{unknown}; the tokenizer is not its own")


def _check_stop(stop: Sequence[str]) -> None:
    if "" in stop:
        raise UserError("stop: a stop string has at least one character")


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
    hidden, cache, seen = read(model, slots, params, tokens_BP, lengths_B)
    state = State(cache, seen, jax.vmap(jax.random.key)(seeds_B), jnp.int32(0))
    return _choose(model, params, hidden, state, settings)


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


DRAWING = Method((), _prefill, _decode)
"""Each row draws its next token by `sample`."""


def _checked(seeds: Sequence[int] | None, rows: int) -> np.ndarray:
    seeds = range(rows) if seeds is None else seeds
    if len(seeds) != rows or not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seeds: expected {rows} from 0 to 4294967295, got {list(seeds)}")
    return np.array(seeds, np.uint32)
