import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxllm.common.trees import nest
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.models.heads import head_logits
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import table_specs
from jaxllm.train.evaluate import Evaluator, HeldOut
from jaxllm.train.metrics import read_metrics
from jaxllm.train.params import load_run_params


@pytest.fixture(scope="module")
def loader(recipe):
    return Loader(prepare_corpus(recipe.data, recipe.tokenizer), recipe.data, recipe.train.batch_size, recipe.seed)


@pytest.fixture(scope="module")
def params(recipe):
    rng = np.random.default_rng(0)
    table = parameter_table(recipe.model)
    return nest({path: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in table.items()})


def evaluate(recipe, loader, params, stop=lambda: False):
    """The first evaluation and the last."""
    mesh = make_mesh(recipe.mesh)
    with jax.set_mesh(mesh):
        evaluator = Evaluator(recipe, loader, mesh, stop, print)
        specs = table_specs(mesh.shape, parameter_table(recipe.model))
        params = jax.device_put(params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
        part = evaluator(params)
        return part, part and evaluator.last(params, part)


def test_the_whole_is_every_held_out_token_and_byte_and_the_part_its_first_batches(recipe, loader, params):
    @jax.jit
    def model(params, *batch):
        return head_logits(params, Transformer(recipe.model).apply({"params": params}, *batch)[0], recipe.model)

    nats = []
    for batch in loader.validation_batches(8):
        logits = np.asarray(model(params, batch["tokens"], batch["positions"], batch["segments"]), np.float64)
        of_target = np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
        nats.append(((np.log(np.exp(logits).sum(-1)) - of_target) * batch["weights"]).sum())
    part, whole = evaluate(recipe, loader, params)
    assert len(nats) > 1
    assert whole.nats == pytest.approx(sum(nats), rel=1e-6)
    assert whole.tokens == loader.held_out_pairs
    assert whole.bytes == loader.corpus.held_out_bytes
    assert whole.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / loader.corpus.held_out_bytes, rel=1e-6)
    assert part.nats == pytest.approx(nats[0], rel=1e-6)
    assert part.bytes == pytest.approx(whole.bytes * part.tokens / whole.tokens)
    two = 2 * recipe.train.batch_size * recipe.data.sequence_length
    capped = replace(recipe, eval=replace(recipe.eval, last_tokens=two))
    assert evaluate(capped, loader, params)[1].nats == pytest.approx(sum(nats[:2]), rel=1e-6)


def test_a_long_evaluation_tells_how_far_it_is_once_a_part_is_done(recipe, loader, params, monkeypatch, capsys):
    monkeypatch.setattr("jaxllm.train.evaluate.SAID_EVERY", -1.0)  # as if the first batch had taken long
    evaluate(recipe, loader, params)
    first, *_ = told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"the last evaluation: 1 of {len(told) + 1}, \d+:\d\d left", first)


def test_a_run_evaluates_the_moving_average_that_it_keeps(recipe, loader, uninterrupted):
    told = read_metrics(uninterrupted)[-1]["final_loss"]
    averaged, raw = (
        evaluate(recipe, loader, load_run_params(uninterrupted, ema=ema)[1])[1].loss for ema in (True, False)
    )
    assert averaged == pytest.approx(told, rel=1e-6)
    assert raw != pytest.approx(told, rel=1e-3)


@pytest.mark.parametrize(("answers", "known"), [(1, [False, False]), (2, [True, False])])
def test_a_stopped_evaluation_says_nothing(recipe, loader, params, answers, known):
    asked = []
    stopped = evaluate(recipe, loader, params, stop=lambda: bool(asked.append(1)) or len(asked) > answers)
    assert [result is not None for result in stopped] == known


def test_loss_perplexity_and_bits_follow_from_the_sums():
    held_out = HeldOut(nats=20 * math.log(2), tokens=10, bytes=40)
    assert held_out.metrics("held_out") == {
        "held_out_loss": pytest.approx(2 * math.log(2)),
        "held_out_perplexity": pytest.approx(4),
        "held_out_bits_per_byte": pytest.approx(0.5),
        "held_out_tokens": 10,
    }
