import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.generation.beam import beam_search, beam_tokens
from jaxllm.generation.config import BeamConfig, SamplingConfig
from jaxllm.generation.generate import Generator
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer
from tests.generation.conftest import LLAMA, chain, random_params
from tests.generation.families import CONFIGS, ENDS, PROMPTS, drawn_params

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "beams.json").read_text())


class Vocabulary:
    """As much of a tokenizer as token ids need."""

    bos_id, pad_id = 1, 0

    def __init__(self, eos_id):
        self.eos_id = eos_id


@pytest.fixture(scope="module")
def generators():
    """One for each family."""
    return {name: Generator(c, drawn_params(c), Vocabulary(ENDS[name])) for name, c in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_and_scores_are_those_of_transformers(generators, name):
    """Prompts of three lengths in a batch; all penalties and rules of stopping share two programs."""
    for case in FIXTURE["cases"][name]:
        rules = {rule: case[rule] for rule in ("length_penalty", "early_stopping")}
        config = BeamConfig(beams=FIXTURE["beams"], best=FIXTURE["beams"], **rules)
        found = beam_tokens(generators[name], PROMPTS, FIXTURE["new_tokens"], config)
        for row, expected in zip(found, case["found"], strict=True):
            assert [tokens for tokens, _ in row] == [tokens for tokens, _ in expected]
            np.testing.assert_allclose([s for _, s in row], [s for _, s in expected], rtol=1e-5)
    assert len(generators[name].programs) == 2


def test_one_beam_is_the_greedy_choice(generators):
    generator, end = generators["t5"], ENDS["t5"]
    greedy = np.stack(list(generator.tokens(PROMPTS, 10, SamplingConfig(temperature=0))), axis=1).tolist()
    cut = [row[: row.index(end) + 1] if end in row else row for row in greedy]
    assert [row[0][0] for row in beam_tokens(generator, PROMPTS, 10, BeamConfig(beams=1))] == cut


def test_enough_beams_find_what_an_exhaustive_search_finds():
    """Every text of at most four tokens of a vocabulary of five, scored by the full forward pass."""
    config, end, prompt, most = replace(LLAMA, vocab_size=5), 2, [1, 3, 4], 4
    params = random_params(config)
    rows = np.array([[*prompt, *rest] for rest in itertools.product(range(5), repeat=most)])
    hidden, *_ = jax.jit(Transformer(config).apply)({"params": params}, jnp.asarray(rows))
    logs = np.asarray(jax.nn.log_softmax(head_logits(params, hidden, config)))[:, len(prompt) - 1 : -1]
    totals = {}
    for row, log in zip(rows[:, len(prompt) :].tolist(), logs, strict=True):
        text = tuple(row[: row.index(end) + 1] if end in row else row)
        totals[text] = sum(log[i, token] for i, token in enumerate(text))
    generator = Generator(config, params, Vocabulary(end))
    for penalty in (0.0, 1.0, -0.5, 3.0):
        expected = sorted(((total / len(text) ** penalty, text) for text, total in totals.items()), reverse=True)
        search = BeamConfig(beams=320, best=300, length_penalty=penalty, early_stopping="never")
        [found] = beam_tokens(generator, [prompt], most, search)
        np.testing.assert_allclose([score for _, score in found], [score for score, _ in expected[:300]], rtol=1e-4)
        assert [tuple(tokens) for tokens, _ in found[:5]] == [text for _, text in expected[:5]]
        [fewer] = beam_tokens(generator, [prompt], 2, search)
        assert {tuple(tokens) for tokens, _ in fewer} == {text[:2] for text in totals}


def test_a_row_has_its_own_room_and_does_not_depend_on_those_beside_it():
    generator = Generator(CONFIGS["llama"], drawn_params(CONFIGS["llama"]), Vocabulary(99), max_length=12)
    search = BeamConfig(beams=3, best=3)
    together = beam_tokens(generator, PROMPTS, 30, search)
    assert [[len(tokens) for tokens, _ in row] for row in together] == [[6] * 3, [10] * 3, [1] * 3]
    for prompt, row in zip(PROMPTS, together, strict=True):
        [alone] = beam_tokens(generator, [prompt], 30, search)
        assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in row]
        np.testing.assert_allclose([s for _, s in alone], [s for _, s in row], rtol=1e-5)


def test_a_generation_tells_its_text_its_end_and_its_score(tokenizer):
    """A chain of tokens that is all but sure, so that the best text has a score near 0 and the others do not."""
    ids = tokenizer.encode("a🦊")
    successors = dict(zip(ids, [*ids[1:], tokenizer.eos_id], strict=True))
    config, params = chain(successors, tokenizer.vocab_size)
    params["head"]["kernel"] *= 10.0
    made = beam_search(Generator(config, params, tokenizer), ["a", "a🦊"], 9, BeamConfig(beams=2, best=2))
    best = [row[0] for row in made]
    assert [(g.text, g.finish) for g in best] == [("🦊", "eos"), ("", "eos")]
    assert best[0].tokens == (*ids[1:], tokenizer.eos_id)
    assert all(row[0].score > -1e-3 > -1.0 > row[1].score for row in made)
    assert best[0].timing.prompt_tokens == 2 + 1 + len(ids)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ({"beams": 0}, "'beams': expected 1 or more, got 0"),
        ({"beams": 2, "best": 3}, r"'best': expected 1 to 2 \(beams\), got 3"),
        ({"length_penalty": float("nan")}, "'length_penalty': expected a number, got nan"),
        ({"early_stopping": "always"}, "'early_stopping': expected True, False or 'never', got always"),
    ],
)
def test_what_will_not_do_is_named_before_anything_is_compiled(search, complaint):
    generator = Generator(CONFIGS["llama"], drawn_params(CONFIGS["llama"]), Vocabulary(2))
    with pytest.raises(UserError, match=complaint):
        beam_tokens(generator, PROMPTS, 4, BeamConfig(**search))
    with pytest.raises(UserError, match="prompt 1 has 70 tokens"):
        beam_tokens(generator, [[3] * 70], 4, BeamConfig())
    assert not generator.programs
