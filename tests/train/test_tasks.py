"""What a run on several tasks measures of each, and what a conversation weighs in its loss."""

import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.cli.train import Options, _sample, train_run
from jaxllm.common.processes import ALONE
from jaxllm.common.trees import flatten, nest
from jaxllm.config import EvalConfig, MixtureConfig, ObjectiveConfig, SourceConfig, TokenizerConfig, UserError
from jaxllm.data.chat_template import load_chat_template
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer
from jaxllm.objectives.token_loss import token_loss
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.evaluate import Evaluator, HeldOut
from jaxllm.train.loop import open_loader
from jaxllm.train.metrics import read_metrics
from jaxllm.train.run_folder import saved_tokenizer
from jaxllm.train.tasks import Forgetting, read_tasks, tasks_table

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OTHER = "[/while] $_$"
"""A task whose name is neither markup of a terminal nor mathematics of a picture."""
MIXTURE = MixtureConfig(kind="proportional")


@pytest.fixture(scope="module")
def chats(recipe, tmp_path_factory):
    """The recipe's run on three tasks of short conversations, one of which is not trained on."""
    root = tmp_path_factory.mktemp("chats")
    (root / "short.jinja").write_text(TEMPLATE)
    path = root / "chats.jsonl"
    rows = [
        {"prompt": f"def {i}", "completion": answer * (1 + i % 3), "task": answer}
        for i in range(40)
        for answer in ("return", "import", OTHER)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(kind="jsonl", path=str(path), format="auto", task_field="task", held_out_tasks=(OTHER,))
    return replace(
        recipe,
        data=replace(recipe.data, sources=(source,), mixture=MIXTURE, validation_fraction=0.3),
        tokenizer=TokenizerConfig(vocab_size=300, chat_template=str(root / "short.jinja")),
        objective=ObjectiveConfig(kind="sft"),
        eval=EvalConfig(every=0, task_rows=2, prompts=("def 1",), sample_tokens=3),
    )


@pytest.fixture(scope="module")
def trained(chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "chats"
    assert train_run(replace(chats, output=str(folder))).step == 12
    return folder


def test_a_run_tells_what_became_of_each_task(trained):
    lines = read_tasks(trained)
    assert {line["task"] for line in lines} == {"return", "import", OTHER}
    for line in lines:
        assert line["difference"] == pytest.approx(line["after"] - line["before"])
        assert line["tokens"] > 10
        assert line["before"] == pytest.approx(np.log(320), rel=0.05)
    assert [line["difference"] for line in lines] == sorted((line["difference"] for line in lines), reverse=True)
    trained_on = [line["difference"] for line in lines if line["task"] != OTHER]
    assert max(trained_on) < next(line["difference"] for line in lines if line["task"] == OTHER)
    assert (trained / "tasks.png").read_bytes().startswith(b"\x89PNG")
    log = (trained / "log.txt").read_text()
    assert "Held-out loss by task: " in log
    assert "answer to 'def 1':" in log


def test_the_run_folder_has_the_template_that_it_was_trained_by(trained):
    template = load_chat_template(trained, load_tokenizer(saved_tokenizer(trained)))
    assert template.render([{"role": "user", "content": "a"}], add_generation_prompt=True) == "<|user|>a<|assistant|>"


def test_a_prompt_that_its_template_makes_too_long_is_told_before_training(chats):
    corpus = prepare_corpus(chats.data, chats.tokenizer)
    prompt = "7" * 31
    assert len(corpus.tokenizer.encode(prompt)) == 31
    wrong = replace(chats, eval=replace(chats.eval, prompts=(prompt,)))
    with pytest.raises(UserError, match=r"eval\.prompts\.0 = '7+': has 33 tokens with its beginning; at most"):
        open_loader(wrong, corpus)


def test_a_run_that_goes_on_keeps_what_was_before(chats, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    before = {line["task"]: line["before"] for line in read_tasks(folder)}
    longer = replace(chats, output=str(folder), train=replace(chats.train, steps=14))
    assert train_run(longer, Options(allow_change=True)).step == 14
    after = read_tasks(folder)
    assert {line["task"]: line["before"] for line in after} == before
    assert [line["after"] for line in after] != [line["after"] for line in read_tasks(trained)]


def test_a_signal_while_they_are_measured_at_last_loses_nothing(chats, trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    longer = replace(chats, output=str(folder), train=replace(chats.train, steps=14))
    measure = Evaluator.tasks

    def stopped(evaluator, params):
        signal.raise_signal(signal.SIGTERM)
        return measure(evaluator, params)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "tasks", stopped)
        assert train_run(longer, Options(allow_change=True)).signal == signal.SIGTERM
    earlier = read_tasks(trained)
    assert read_tasks(folder) == earlier
    assert train_run(longer).step == 14
    assert [line["after"] for line in read_tasks(folder)] != [line["after"] for line in earlier]


def test_the_last_step_is_saved_before_its_tasks_are_measured(chats, trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    longer = replace(chats, output=str(folder), train=replace(chats.train, steps=14))

    def fails(evaluator, params):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "tasks", fails)
        with pytest.raises(MemoryError):
            train_run(longer, Options(allow_change=True))
    assert Checkpoints(folder).steps()[-1] == 14
    assert train_run(longer).step == 14
    at_last = [line for line in read_metrics(folder) if line["step"] == 14]
    assert [sum(name in line for line in at_last) for name in ("held_out_loss", "final_loss")] == [1, 1]
    assert [line["after"] for line in read_tasks(folder)] != [line["after"] for line in read_tasks(trained)]


def test_samples_that_a_device_has_no_room_for_are_left_out(chats, monkeypatch):
    def too_large(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    said = []
    monkeypatch.setattr("jaxllm.cli.train._show_samples", too_large)
    _sample(chats, {}, corpus=None, report=SimpleNamespace(say=said.append), processes=ALONE)
    assert said == ["no samples of eval.prompts: one device has no room for the whole model; all else is done"]


@pytest.mark.parametrize(("tasks", "names"), [(True, ["one"]), (False, ["one", "two"])])
def test_nothing_is_measured_of_one_task_or_if_it_is_not_wanted(chats, tmp_path, tasks, names):
    config = replace(chats, eval=replace(chats.eval, tasks=tasks))
    forgetting = Forgetting(config, tmp_path, names, evaluator=None, report=None)
    forgetting.measure({}, "before", writes=True)
    assert not list(tmp_path.iterdir())


def test_tasks_that_hold_nothing_out_are_named(chats, tmp_path):
    said = []
    found = [HeldOut(2.0, 5, None), None]
    evaluator, report = SimpleNamespace(tasks=lambda params: found), SimpleNamespace(say=said.append)
    forgetting = Forgetting(chats, tmp_path, ["one", "two"], evaluator, report)
    forgetting.measure({}, "before", writes=True)
    assert "tasks that hold nothing out are not measured: two" in said
    assert [line["task"] for line in read_tasks(tmp_path)] == ["one"]


def test_the_table_has_the_worst_first_and_no_more_than_fit():
    lines = [
        {"task": f"task {i}", "tokens": 1000 + i, "before": 2.0, "after": 3.5 - i / 10, "difference": 1.5 - i / 10}
        for i in range(30)
    ]
    text = tasks_table(lines)
    assert "15 of 30 tasks rose, 15 fell" in text
    assert text.index("task 0 ") < text.index("task 19 ")
    assert "task 20" not in text
    assert "and 10 more, in tasks.jsonl" in text
    assert "+1.5000" in text
    assert "-0.4000" in text
    assert "1,019" in text


def test_packed_conversations_have_the_loss_and_gradient_of_each_alone_and_prompts_have_none(chats):
    """Under a block-diagonal mask; the labels of a prompt change neither."""
    corpus = prepare_corpus(chats.data, chats.tokenizer)
    loader = Loader(corpus, chats.data, 8, 0, chats.objective)
    rng = np.random.default_rng(0)
    params = nest(
        {p: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32) for p, x in parameter_table(chats.model).items()}
    )

    def total_and_weight(params, batch):
        return token_loss(Transformer(chats.model), params, batch, None, chunk=64)[:2]

    measured = jax.jit(jax.value_and_grad(total_and_weight, has_aux=True))
    packed = loader.batch(0)
    assert packed["segments"].max() > 1
    found = measured(params, packed)
    alone = jax.tree.map(jnp.zeros_like, found)
    pieces = [(r, s) for r in range(8) for s in range(1, packed["segments"][r].max() + 1)]
    for first in range(0, len(pieces), 8):
        batch = loader.examples.empty(8)
        for b, (row, segment) in enumerate(pieces[first : first + 8]):
            own = packed["segments"][row] == segment
            for name in batch:
                batch[name][b, : own.sum()] = 1 if name == "segments" else packed[name][row][own]
        alone = jax.tree.map(jnp.add, alone, measured(params, batch))
    for path, x in flatten(found[1]).items():
        np.testing.assert_allclose(flatten(alone[1])[path], x, atol=1e-5 * float(jnp.abs(x).max()), err_msg=path)
    np.testing.assert_allclose(alone[0], found[0], rtol=1e-5)
    relabelled = {**packed, "targets": np.where(packed["weights"] > 0, packed["targets"], 7)}
    for one, other in zip(jax.tree.leaves(measured(params, relabelled)), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)
