from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.generation import generate
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.generate import Generator
from jaxllm.generation.prefill import prompt_ids
from jaxllm.models.block import Memory
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, decode, encode
from tests.generation.conftest import LLAMA, random_params
from tests.generation.families import CONFIGS, PROMPTS, drawn_params

GREEDY = SamplingConfig(temperature=0)
RANDOM = SamplingConfig(temperature=1.5, top_k=20, top_p=0.97, min_p=1e-4, repetition_penalty=1.1)


class Vocabulary:
    """As much of a tokenizer as token ids need."""

    bos_id, eos_id, pad_id = 1, 2, 0


def full_logits(config, params, prompt, written):
    """Logits `[T, V]` of what the decoder reads, given a prompt without padding; without a cache."""

    @jax.jit
    def run(prompt, written):
        model, ones = Transformer(config), jnp.ones_like(prompt)
        memory = Memory(encode(model, params, prompt, None, ones).hidden, ones)
        return head_logits(params, decode(model, params, written, memory=memory).hidden[0], config)

    return run(jnp.asarray([prompt]), jnp.asarray([written]))


def rows_of(steps):
    return np.stack(list(steps), axis=1).tolist()


def test_each_step_of_a_decoder_sees_the_whole_prompt_and_what_was_written(monkeypatch):
    """Prompts of different lengths in one batch; what `sample` is given is recorded as the compiled programs run."""
    seen = []

    def recorded(logits, *rest, sample=generate.sample):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), logits, ordered=True)
        return sample(logits, *rest)

    monkeypatch.setattr(generate, "sample", recorded)
    config, params, new = CONFIGS["bart"], drawn_params(CONFIGS["bart"]), 12
    made = rows_of(Generator(config, params, Vocabulary()).tokens(PROMPTS, new, GREEDY))
    jax.effects_barrier()
    for i, prompt in enumerate(PROMPTS):
        full = full_logits(config, params, prompt, [config.start_token, *made[i][:-1]])
        np.testing.assert_allclose(np.stack(seen)[:new, i], full, atol=1e-4)
        assert made[i] == jnp.argmax(full, axis=-1).tolist()
    assert len({tuple(row) for row in made}) == 3


@pytest.fixture(scope="module")
def answering(tokenizer):
    """A model with relative positions for the tokenizer's ids, whose decoder starts from the padding."""
    config = CONFIGS["t5"]
    config = replace(config, vocab_size=tokenizer.vocab_size, start_token=None, max_positions=24)
    return Generator(config, drawn_params(config), tokenizer)


def test_rows_and_seeds_do_not_depend_on_the_batch(answering):
    together = rows_of(answering.tokens(PROMPTS, 9, RANDOM, seeds=[5, 6, 5]))
    assert together == rows_of(answering.tokens(PROMPTS, 9, RANDOM, seeds=[5, 6, 5]))
    assert together != rows_of(answering.tokens(PROMPTS, 9, RANDOM, seeds=[6, 6, 5]))
    for prompt, seed, row in zip(PROMPTS, [5, 6, 5], together, strict=True):
        assert rows_of(answering.tokens([prompt], 9, RANDOM, seeds=[seed])) == [row]


def test_text_has_all_positions_whatever_the_prompt_takes_and_streams(answering, tokenizer):
    pieces = []
    prompt = "q" * 22
    assert len(answering.ids([prompt])[0]) == 24
    [made] = answering.generate([prompt], 50, GREEDY, on_text=lambda row, piece: pieces.append(piece))
    assert made.finish in ("eos", "length")
    assert made.text == "".join(pieces) == tokenizer.decode(made.tokens)
    assert len(made.tokens) == 24 or made.finish == "eos"
    with pytest.raises(UserError, match="prompt 1 has 25 tokens; expected 1 to 24"):
        answering.generate([prompt + "q"], 50, GREEDY)


def test_the_repetition_penalty_is_of_what_was_written_not_of_what_was_read(answering):
    """Of a prompt that holds every token, none is made less likely."""
    prompt = list(range(3, 25))
    plain, penal = (
        next(answering.tokens([prompt], 50, SamplingConfig(temperature=0, repetition_penalty=penalty)))
        for penalty in (1.0, 1e6)
    )
    assert plain == penal


def test_a_prompt_is_a_whole_text_to_an_encoder_and_the_beginning_of_one_to_a_decoder(tokenizer):
    ids = tokenizer.encode("the fox")
    begin, end = tokenizer.bos_id, tokenizer.eos_id
    assert prompt_ids(CONFIGS["t5"], tokenizer, "the fox") == [begin, *ids, end]
    assert prompt_ids(LLAMA, tokenizer, "the fox") == [begin, *ids]
    assert prompt_ids(LLAMA, tokenizer, "the fox", begin=False) == ids
    assert prompt_ids(LLAMA, tokenizer, "", begin=False) == [begin]

    class WithoutBegin(Vocabulary):
        bos_id = 2
        encode_with_specials = staticmethod(tokenizer.encode)

    assert prompt_ids(CONFIGS["t5"], WithoutBegin(), "the fox") == [*ids, 2]


def test_an_encoder_alone_is_refused(tokenizer):
    config = replace(LLAMA, architecture="encoder")
    with pytest.raises(UserError, match=r"model\.architecture = 'encoder': it cannot generate text"):
        Generator(config, random_params(config), tokenizer)
