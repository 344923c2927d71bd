"""Runs that begin with the parameters of another."""

import json
import shutil
import signal
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxllm.cli.train import train_run
from jaxllm.common.trees import flatten
from jaxllm.config import (
    LoraConfig,
    MeshConfig,
    PromptConfig,
    TokenizerConfig,
    TuningConfig,
    UserError,
)
from jaxllm.models.adapters import trained_table
from jaxllm.peft.merge import effective
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.metrics import read_metrics
from jaxllm.train.params import Origin, fingerprint, load_base, load_run_params, load_trained, read_origin

PARTS = ("attention/query", "attention/key", "attention/value", "attention/output", "mlp/gate", "mlp/up", "mlp/down")
LORA = TuningConfig(method="lora", lora=LoraConfig(rank=2, dropout=0.1))


def configured(recipe, base, output, tuning, **fields):
    """A run of 6 steps that begins with the parameters of another, on 8 devices."""
    train = replace(recipe.train, steps=6, ema_decay=None)
    fields = {"mesh": MeshConfig(data=4, fsdp=2), "tokenizer": TokenizerConfig(vocab_size=320), **fields}
    return replace(recipe, base=str(base), tuning=tuning, train=train, output=str(output), **fields)


@pytest.fixture
def tuned(recipe, uninterrupted, tmp_path):
    """`tuned(tuning)`: such a run, of the model that was trained in one go."""
    return partial(configured, recipe, uninterrupted, tmp_path / "tuned")


@pytest.fixture(scope="module")
def bits_of_base(uninterrupted):
    """Every parameter of the base, before anything was tuned."""
    return {path: np.asarray(x).tobytes() for path, x in flatten(load_run_params(uninterrupted)[1]).items()}


@pytest.fixture(scope="module")
def adapter(recipe, uninterrupted, bits_of_base, tmp_path_factory):
    """The folder of one that has trained LoRA. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    assert train_run(configured(recipe, uninterrupted, folder, LORA)).step == 6
    return folder


def bits(tree):
    return [(jax.tree_util.keystr(path), np.asarray(x).tobytes()) for path, x in jax.tree.leaves_with_path(tree)]


def held_out(folder):
    return [line["held_out_loss"] for line in read_metrics(folder) if "held_out_loss" in line]


def test_an_adapter_is_saved_alone_and_opened_with_its_base_whose_bits_are_what_they_were(
    bits_of_base, adapter, uninterrupted
):
    config, trained, info = load_trained(adapter)
    assert set(flatten(trained)) == set(trained_table(config))
    assert (adapter / "tokenizer.model").read_bytes() == (uninterrupted / "tokenizer.model").read_bytes()
    base, whole = flatten(load_run_params(uninterrupted)[1]), flatten(load_run_params(adapter)[1])
    assert {path: np.asarray(x).tobytes() for path, x in base.items()} == bits_of_base
    assert set(whole) == set(base)
    changed = {path for path, x in whole.items() if not np.array_equal(x, base[path])}
    assert changed == {f"layers/{part}/kernel" for part in PARTS}
    assert info.step == 6
    assert held_out(adapter)[-1] < held_out(uninterrupted)[-1] + 0.1


def test_what_training_has_changed_of_a_kernel_has_the_rank_of_the_adapter(adapter, uninterrupted):
    base, whole = flatten(load_run_params(uninterrupted)[1]), flatten(load_run_params(adapter)[1])
    for path in (f"layers/{part}/kernel" for part in PARTS):
        reads = 2 if "output" in path else 1
        for change in np.asarray(whole[path] - base[path]):
            matrix = change.reshape(np.prod(change.shape[:reads]), -1)
            sizes = np.linalg.svd(matrix, compute_uv=False)
            assert sizes[1] > 0.01, path
            assert sizes[2] < 1e-6, path


def test_a_tuned_run_that_was_stopped_goes_on_to_the_bit(adapter, tuned, at_step, tmp_path):
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    assert train_run(tuned(LORA)).signal == signal.SIGTERM
    train_run(tuned(LORA))
    one, other = (flatten(load_trained(folder)[1]) for folder in (adapter, tmp_path / "tuned"))
    for path, x in one.items():
        np.testing.assert_array_equal(other[path], x, err_msg=path)


def test_a_tuned_run_goes_on_on_another_mesh(adapter, tuned, at_step, tmp_path):
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    assert train_run(tuned(LORA, mesh=MeshConfig(fsdp=4, tensor=2))).signal == signal.SIGTERM
    assert train_run(tuned(LORA, mesh=MeshConfig(fsdp=8))).step == 6
    one, other = (flatten(load_trained(folder)[1]) for folder in (adapter, tmp_path / "tuned"))
    for path, x in one.items():
        np.testing.assert_allclose(other[path], x, atol=1e-4, err_msg=path)
    np.testing.assert_allclose(held_out(tmp_path / "tuned"), held_out(adapter), atol=1e-5)


def test_all_parameters_may_be_tuned_from_a_base(tuned, uninterrupted, tmp_path):
    config = tuned(TuningConfig())
    train_run(replace(config, optimizer=replace(config.optimizer, learning_rate=1e-12, weight_decay=0.0)))
    base, whole = (flatten(load_run_params(f, ema=True)[1]) for f in (uninterrupted, tmp_path / "tuned"))
    for path, x in base.items():
        np.testing.assert_allclose(whole[path], x, atol=1e-9, err_msg=path)
    assert read_origin(tmp_path / "tuned").step == 12


@pytest.mark.parametrize(
    "tuning",
    [
        TuningConfig(method="prompt", prompt=PromptConfig(length=4)),
        TuningConfig(method="hybrid", prompt=PromptConfig(length=4, start="labels", labels=("def", "return value"))),
        TuningConfig(method="lora", lora=LoraConfig(rank=2, magnitudes=True), base_dtype="nf4"),
        replace(LORA, also=("norm/scale",), base_dtype="int8"),
    ],
    ids=["prompt", "hybrid", "dora on nf4", "lora and norms on int8"],
)
def test_other_methods_run_too_and_change_no_bit_of_what_is_frozen(tuned, tuning, tmp_path, monkeypatch):
    seen = []

    def remembered(config, trained, frozen):
        seen.append(bits(frozen))
        return effective(config, trained, frozen)

    monkeypatch.setattr("jaxllm.train.loop.effective", remembered)  # what is evaluated, before steps and after
    config = tuned(tuning, mesh=MeshConfig(data=8))
    assert train_run(config).step == 6
    assert len(seen) > 1
    assert seen[0]
    assert all(later == seen[0] for later in seen)
    assert set(flatten(load_trained(tmp_path / "tuned")[1])) == set(trained_table(config))
    assert np.isfinite(held_out(tmp_path / "tuned")).all()


def test_a_base_that_has_changed_is_refused(adapter, tuned, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "tuned")
    config = tuned(LORA)
    for wrong in ({"step": 8, "fingerprint": read_origin(folder).fingerprint}, {"step": 5, "fingerprint": "ab"}):
        (folder / "base.json").write_text(json.dumps(wrong))  # of step 8 there are other numbers, of step 5 none
        with pytest.raises(UserError, match="is an adapter for another base"):
            load_run_params(folder)
        with pytest.raises(UserError, match="is not what this run began with"):
            train_run(replace(config, train=replace(config.train, steps=7)), _allowing())


def test_an_adapter_upon_another_begins_with_it_cut_and_knows_it_by_what_was_trained(adapter, tuned, tmp_path):
    """Sums of a base and an adapter are rounded as the machine likes."""
    first = shutil.copytree(adapter, tmp_path / "first")
    second = replace(tuned(LORA), base=str(first))
    mesh = make_mesh(second.mesh)
    with jax.set_mesh(mesh):
        base, origin = load_base(second, mesh, None, lambda path, x: x)
    _, whole, info = load_run_params(first)
    for path, x in flatten(whole).items():
        np.testing.assert_allclose(base[path], x, atol=1e-6, err_msg=path)
        assert base[path].sharding.mesh == mesh
    rounded_otherwise = jax.tree.map(lambda x: np.nextafter(x, np.float32(np.inf)), whole)
    assert origin == Origin(6, fingerprint(first, info.step, rounded_otherwise))
    (first / "base.json").write_text(json.dumps({"step": 12, "fingerprint": ""}))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="is not what this run began with"):
        load_base(second, mesh, origin, lambda path, x: x)


def _allowing():
    from jaxllm.cli.train import Options

    return Options(allow_change=True)


def test_a_base_of_another_shape_or_none_at_all_is_told(tuned, recipe, tmp_path):
    config = tuned(LORA)
    with pytest.raises(UserError, match=r"its model is another one than that of the run: ffn: 32 -> 48"):
        train_run(replace(config, model=replace(recipe.model, ffn=48)))
    with pytest.raises(UserError, match="is not a run folder"):
        train_run(replace(config, base=str(tmp_path / "nothing")))
    assert not (tmp_path / "tuned" / "checkpoints").exists()
