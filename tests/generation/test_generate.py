import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxllm.config import MeshConfig, UserError
from jaxllm.generation import generate
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.generate import Generator
from jaxllm.generation.sampling import settings_of
from jaxllm.models.heads import head_logits
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import table_specs
from tests.generation.conftest import CONFIGS, LLAMA, chain, random_params

GREEDY = SamplingConfig(temperature=0)
RANDOM = SamplingConfig(temperature=1.5, top_k=200, top_p=0.97, min_p=1e-4, repetition_penalty=1.1)
PROMPTS = [[1, 7, 5], [3] * 9 + [8, 2, 200, 30], [11]]

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(scope="module")
def generator(tokenizer):
    return Generator(LLAMA, random_params(LLAMA), tokenizer)


def full_logits(config, params, tokens):
    """Logits `[T, V]` of one row, without a cache."""
    x, *_ = jax.jit(functools.partial(Transformer(config).apply, {"params": params}))(jnp.asarray([tokens]))
    return head_logits(params, x[0], config)


def rows_of(steps):
    return np.stack(list(steps), axis=1).tolist()


@each_config
def test_each_step_sees_the_logits_of_the_full_pass_and_takes_the_largest(config, tokenizer, monkeypatch):
    """Prompts of different lengths in one batch; what `sample` is given is recorded as the compiled programs run."""
    seen = []

    def recorded(logits, *rest, sample=generate.sample):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), logits, ordered=True)
        return sample(logits, *rest)

    monkeypatch.setattr(generate, "sample", recorded)
    params, new = random_params(config), 12
    made = rows_of(Generator(config, params, tokenizer).tokens(PROMPTS, new, GREEDY))
    jax.effects_barrier()
    for i, prompt in enumerate(PROMPTS):
        full = full_logits(config, params, prompt + made[i])[len(prompt) - 1 : -1]
        np.testing.assert_allclose(np.stack(seen)[:new, i], full, atol=1e-4)
        assert made[i] == jnp.argmax(full, axis=-1).tolist()
    assert len({tuple(row) for row in made}) == 3


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM], ids=["greedy", "random"])
@each_config
def test_a_row_in_a_batch_equals_the_row_alone(config, sampling, tokenizer):
    generator = Generator(config, random_params(config), tokenizer)
    together = rows_of(generator.tokens(PROMPTS, 12, sampling, seeds=[5, 6, 5]))
    for prompt, seed, row in zip(PROMPTS, [5, 6, 5], together, strict=True):
        assert rows_of(generator.tokens([prompt], 12, sampling, seeds=[seed])) == [row]


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(generator):
    def tokens(*seeds):
        return rows_of(generator.tokens([PROMPTS[0]] * 3, 12, RANDOM, seeds=seeds or None))

    assert tokens(1, 2, 1) == tokens(1, 2, 1)
    a, b, c = tokens(1, 2, 2**32 - 1)
    assert a != b != c != a
    assert tokens() == tokens(0, 1, 2)


def test_one_prefill_a_bucket_and_one_step_serve_all_lengths_and_settings(tokenizer):
    compiled = []

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    generator = Generator(LLAMA, random_params(LLAMA), tokenizer)
    list(generator.tokens([[1, 2, 3]], 20))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for length, sampling in ((1, GREEDY), (9, RANDOM), (16, SamplingConfig(top_k=5))):
            list(generator.tokens([[4] * length], 20, sampling, seeds=[length]))
        assert not compiled
        for length in (17, 25, 32):
            list(generator.tokens([[4] * length], 20, RANDOM))
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert set(generator.programs) == {("prefill", 1, 16, 64), ("prefill", 1, 32, 64), ("decode", 1, 64)}


def test_the_step_overwrites_the_cache_in_place(generator):
    list(generator.tokens([[1, 2, 3]], 20))
    step = generator.programs["decode", 1, 64]
    cache_bytes = 2 * LLAMA.layers * LLAMA.kv_heads * LLAMA.head_dim * 64 * 4
    assert step.memory_analysis().alias_size_in_bytes >= cache_bytes


def test_text_streams_in_pieces_that_join_to_the_result(generator, tokenizer):
    """Random weights make broken characters; they come out as the tokenizer decodes the whole."""
    pieces = {0: [], 1: []}
    prompts = ["the quick", "one"]
    made = generator.generate(prompts, 40, RANDOM, on_text=lambda row, piece: pieces[row].append(piece))
    for row, (prompt, generation) in enumerate(zip(prompts, made, strict=True)):
        assert "".join(pieces[row]) == generation.text
        assert len(pieces[row]) > 5
        prompt_ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        assert prompt + generation.text == tokenizer.decode([*prompt_ids, *generation.tokens])


def test_rows_end_each_in_its_own_way_while_the_others_go_on(tokenizer):
    """One row spells a fox byte by byte and ends; one runs into a stop string; one into its limit."""
    ids = tokenizer.encode("a🦊")
    letters = tokenizer.encode("qbjzvw")
    assert len(ids) == 5
    assert len(letters) == 6
    successors = dict(zip([*ids, tokenizer.eos_id], [*ids[1:], tokenizer.eos_id, tokenizer.eos_id], strict=True))
    successors |= dict(zip(letters, [*letters[1:], letters[0]], strict=True))
    generator = Generator(*chain(successors, tokenizer.vocab_size), tokenizer)
    pieces = []
    made = generator.generate(
        ["a", "q", "w"], 9, stop=["zv", "wqbjzw"], on_text=lambda row, piece: pieces.append((row, piece))
    )
    assert [generation.text for generation in made] == ["🦊", "bj", "qbj"]
    assert [generation.finish for generation in made] == ["eos", "stop", "stop"]
    assert made[0].tokens == (*ids[1:], tokenizer.eos_id)
    assert made[1].tokens == tuple(letters[1:5])
    assert [piece for row, piece in pieces if row == 0] == ["🦊"]
    [unstopped] = generator.generate(["q"], 9)
    assert (unstopped.text, unstopped.finish) == ("bjzvwqbjz", "length")


def test_a_row_ends_where_the_positions_do(tokenizer):
    generator = Generator(LLAMA, random_params(LLAMA), tokenizer, max_length=20)
    longer = rows_of(Generator(LLAMA, random_params(LLAMA), tokenizer).tokens([[5] * 18, [5] * 20, [4]], 30, GREEDY))
    made = rows_of(generator.tokens([[5] * 18, [5] * 20, [4]], 30, GREEDY))
    assert [len(row) for row in made] == [20] * 3
    for row, own in zip(range(3), (3, 1, 20), strict=True):
        assert made[row][:own] == longer[row][:own]
    assert len(generator.generate(["the quick brown fox"], 30, GREEDY)[0].tokens) < 30


def test_parameters_that_are_cut_over_a_mesh_give_the_same_tokens(generator, tokenizer):
    params, mesh = random_params(LLAMA), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), table_specs(mesh.shape, parameter_table(LLAMA)))
    cut = Generator(LLAMA, jax.device_put(params, places), tokenizer)
    assert rows_of(cut.tokens(PROMPTS, 8, RANDOM)) == rows_of(generator.tokens(PROMPTS, 8, RANDOM))


def test_bfloat16_weights_and_cache_give_nearly_the_same_logits(tokenizer):
    params = random_params(LLAMA)
    generator = Generator(LLAMA, params, tokenizer, dtype=jnp.bfloat16)
    prompt = PROMPTS[1]
    [[token]] = rows_of(generator.tokens([prompt], 1, GREEDY))
    assert {name[1] for name in generator.programs} == {2}  # a lone row has a twin
    exact = full_logits(LLAMA, params, prompt)[-1]
    assert exact[token] > jnp.max(exact) - 0.05 * jnp.std(exact) * jnp.sqrt(LLAMA.vocab_size)
    state = jax.eval_shape(
        functools.partial(generate._prefill, generator._model, 32),
        generator._params,
        *(np.ones(s, d) for s, d in (((1, 16), np.int32), (1, np.int32), (1, np.uint32))),
        settings_of(GREEDY),
    )[1]
    assert {x.dtype for x in state.cache.keys + state.cache.values} == {jnp.dtype("bfloat16")}


def test_the_timing_counts_tokens_and_leaves_out_compilation(tokenizer):
    generator = Generator(LLAMA, random_params(LLAMA), tokenizer)
    first, again = (generator.generate(["the quick", "one"], 10, GREEDY)[0].timing for _ in range(2))
    assert first.compile_seconds > 10 * again.compile_seconds
    assert first.prompt_tokens == 2 + len(tokenizer.encode("the quick")) + len(tokenizer.encode("one"))
    assert again.new_tokens <= 18
    assert again.prefill_rate > 0
    assert again.decode_rate > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more, got 0"),
        ({"prompts": []}, "prompts: expected at least one"),
        ({"prompts": ["one", "one " * 70]}, r"prompt 2 has \d+ tokens; expected 1 to 64, .*max_positions"),
        ({"stop": ["x", ""]}, "stop: .* at least one character"),
        ({"seeds": [1]}, r"seeds: expected 2 from 0 to 4294967295, got \[1\]"),
        ({"seeds": [1, -1]}, "seeds: expected 2"),
        ({"sampling": SamplingConfig(top_p=0)}, "'top_p'"),
    ],
)
def test_what_will_not_do_is_named_before_anything_is_compiled(tokenizer, arguments, complaint):
    generator = Generator(LLAMA, random_params(LLAMA), tokenizer)
    with pytest.raises(UserError, match=complaint):
        generator.generate(**{"prompts": ["one", "the"], "max_new_tokens": 4, **arguments})
    assert not generator.programs


def test_a_length_beyond_the_positions_and_a_foreign_tokenizer_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"max_length: expected 1 to 64 \(max_positions\), got 65"):
        Generator(LLAMA, random_params(LLAMA), tokenizer, max_length=65)
    generator = Generator(*chain({}, 20), tokenizer)
    with pytest.raises(UserError, match=r"prompt 1 has token .* vocabulary has 20; the tokenizer is not its own"):
        generator.generate(["the"], 4)
