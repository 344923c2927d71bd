import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxllm.cli.train import Options, run, train_run
from jaxllm.common.trees import flatten
from jaxllm.config import MeshConfig, ScheduleConfig, TokenizerConfig, UserError
from jaxllm.data.loader import Loader
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.train import loop
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.metrics import read_metrics
from jaxllm.train.params import load_run_params
from jaxllm.train.report import Report
from jaxllm.train.run_folder import save_config, saved_config


@pytest.fixture
def config(recipe, tmp_path):
    return replace(recipe, output=str(tmp_path / "run"))


def test_a_run_learns_and_leaves_metrics_events_checkpoints_picture_log_tokenizer_and_configuration(uninterrupted):
    lines = read_metrics(uninterrupted)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 3, 6, 9, 12]
    assert losses[12] < losses[1] - 0.5
    assert [line["step"] for line in lines if "held_out_loss" in line] == [4, 8, 12]
    last = lines[-1]
    assert last["final_loss"] < lines[2]["held_out_loss"]
    assert last["final_perplexity"] == pytest.approx(np.exp(last["final_loss"]))
    assert (uninterrupted / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert Checkpoints(uninterrupted).steps() == [8, 12]
    assert (uninterrupted / "tokenizer.model").is_file()
    assert json.loads((uninterrupted / "config.json").read_text())["train"]["steps"] == 12
    log = (uninterrupted / "log.txt").read_text()
    assert "compiled the training step in" in log
    assert "step 12/12  loss" in log
    assert list((uninterrupted / "events").iterdir())


def test_a_stopped_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(config, at_step, ends_like, tmp_path):
    folder = tmp_path / "run"
    for step, number in ((3, signal.SIGTERM), (9, signal.SIGINT)):
        at_step(step, lambda number=number: signal.raise_signal(number))
        outcome = train_run(config)
        assert (outcome.signal, step <= outcome.step < 12) == (number, True)
        sentence = f"stopped after step {outcome.step}; to go on: jaxllm train {folder}"
        assert sentence in (folder / "log.txt").read_text()
        assert (folder / "loss.png").exists()
    assert train_run(config).step == 12
    assert ends_like(folder)


def test_what_a_killed_process_left_half_written_is_neither_used_nor_kept(config, at_step, ends_like, tmp_path):
    folder = tmp_path / "run"
    at_step(9, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = train_run(config).step
    half = folder / "checkpoints" / "11.writing"
    half.mkdir()
    (half / "info.json").write_text('{"st')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "loss": 0.0}\n{"step": 11, "lo')
    os.rename(folder / "checkpoints" / str(stopped), folder / "checkpoints" / f"{stopped}.deleting")
    train_run(config)
    assert f"going on from step 8 of 12 in '{folder}'" in (folder / "log.txt").read_text()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["12", "8"]
    assert ends_like(folder)


@pytest.fixture
def finished(config, uninterrupted, tmp_path):
    """The folder of a copy of the finished run."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


def test_a_finished_run_trains_no_further_and_says_so(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    assert train_run(config).step == 12
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert "this run has already reached its last step, 12" in (finished / "log.txt").read_text()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_end(config, finished, ends_like):
    damaged = finished / "checkpoints" / "12" / "info.json"
    damaged.write_bytes(damaged.read_bytes().replace(b'"step": 12', b'"step": 13'))
    with pytest.raises(UserError, match=r"checkpoints/12' is damaged: .*'info.json' has changed; .*--step 8"):
        train_run(config)
    assert train_run(config, Options(step=8)).step == 12
    assert ends_like(finished)


def test_a_run_goes_on_with_harmless_changes_and_keeps_them(config, finished):
    changed = replace(config, log_every=1, eval=replace(config.eval, every=5), mesh=MeshConfig(data=8))
    assert train_run(changed).step == 12
    assert saved_config(finished) == changed


def test_a_run_goes_on_with_a_change_that_matters_only_when_told_to(config, finished):
    longer = replace(config, train=replace(config.train, steps=15), seed=1)
    with pytest.raises(UserError) as error:
        train_run(longer)
    assert "  train.steps: 12 -> 15" in str(error.value)
    assert "  seed: 0 -> 1" in str(error.value)
    assert "--allow-change" in str(error.value)
    assert saved_config(finished) == config
    assert train_run(longer, Options(allow_change=True)).step == 15
    assert train_run(longer).step == 15
    assert Checkpoints(finished).steps()[-1] == 15


def test_a_checkpoint_of_another_optimizer_is_refused_by_name_of_what_it_holds(config, finished):
    other = replace(config, optimizer=replace(config.optimizer, kind="lion"))
    with pytest.raises(UserError, match="not of this model and optimizer: the checkpoint also holds 'opt_state/"):
        train_run(other, Options(allow_change=True))
    assert saved_config(finished) == config


def test_changed_text_is_noticed(config, finished):
    added = Path(config.data.sources[0].path, "added.txt")
    added.write_text("a text that was not there\n" * 9)
    try:
        with pytest.raises(UserError, match=r"the text is not what this run was trained on.*--allow-change"):
            train_run(config)
        assert train_run(config, Options(allow_change=True)).step == 12
    finally:
        added.unlink()


def test_another_runs_tokenizer_is_refused(config, finished):
    path = finished / "tokenizer.model"
    train_tokenizer(["other words than those " * 9], TokenizerConfig(vocab_size=300), path)
    with pytest.raises(UserError, match=r"tokenizer '.*/run/tokenizer.model' is not the one that this run"):
        train_run(config, Options(allow_change=True))


def test_a_tokenizer_larger_than_the_model_is_refused_with_the_size_that_would_do(config, uninterrupted):
    tokenizer = TokenizerConfig(path=str(uninterrupted / "tokenizer.model"))
    small = replace(config, model=replace(config.model, vocab_size=300), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"model.vocab_size = 300: .*has 320 pieces; --model.vocab-size 320 would do"):
        train_run(small)
    assert not Path(small.output).exists()


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_made(config, tmp_path):
    large = replace(
        config, mesh=MeshConfig(data=8, fsdp=2), data=replace(config.data, cache_dir=str(tmp_path / "cache"))
    )
    large = replace(large, train=replace(config.train, batch_size=16))
    Path(large.output).mkdir()
    save_config(Path(large.output), large)
    with pytest.raises(
        UserError, match="mesh is data 8 x fsdp 2 x sequence 1 x tensor 1: makes 16 devices, and there are 8"
    ):
        run([large.output])
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_the_documents_and_the_last_good_checkpoint(
    config, arrays, tmp_path
):
    with pytest.raises(UserError) as error:
        train_run(exploding(config))
    folder = tmp_path / "run"
    [saved] = Checkpoints(folder).steps()
    message = str(error.value)
    assert message.startswith(f"step {saved + 1}: the loss is ")
    assert f"the last good checkpoint is '{folder}/checkpoints/{saved}'" in message
    assert re.search(r"batch holds (doc\d\d\.txt(#\d+)?, )*doc\d\d\.txt", message)
    assert "more" not in message
    assert all(np.isfinite(x).all() for x in arrays(folder, config, saved).values())


def test_a_batch_of_which_no_token_is_trained_ends_the_run(config, monkeypatch):
    filled = Loader.fill
    monkeypatch.setattr(Loader, "fill", lambda *rows: {**(made := filled(*rows)), "weights": 0 * made["weights"]})
    with pytest.raises(UserError, match=r"^step 1: no token of its batch is trained, .*doc\d\d\.txt"):
        train_run(config)


def test_documents_that_the_message_does_not_name_are_in_the_log(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "NAMED", 1)
    with pytest.raises(UserError) as error:
        train_run(exploding(config))
    log = tmp_path / "run" / "log.txt"
    first, more = re.search(
        rf"batch holds (\S+) and (\d+) more, all of them named in '{log}'", str(error.value)
    ).groups()
    [names] = re.findall(r"the batch of step \d+ holds (.*)", log.read_text())
    assert names.startswith(f"{first}, ")
    assert len(names.split(", ")) == 1 + int(more) > 2


def test_steps_that_are_not_finite_are_skipped_and_counted_on_request(config, tmp_path):
    config = exploding(config)
    train_run(replace(config, train=replace(config.train, skip_nonfinite=True)))
    last = [line for line in read_metrics(tmp_path / "run") if "loss" in line][-1]
    assert (last["step"], last["skipped"]) == (4, 3)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.info(4).tokens == checkpoints.info(1).tokens > 0


def test_too_many_skipped_steps_in_a_row_end_the_run(config, monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 2)
    config = exploding(config)
    with pytest.raises(
        UserError, match=r"^step 3: this step and the 1 before it were not finite and skipped; "
    ) as error:
        train_run(replace(config, train=replace(config.train, skip_nonfinite=True)))
    assert "--train.skip-nonfinite" not in str(error.value)


def test_a_standard_output_that_nobody_reads_stops_the_run_with_a_checkpoint(config, at_step, monkeypatch, tmp_path):
    at_step(3, lambda: monkeypatch.setattr(Report, "unread", True))
    outcome = train_run(config)
    assert (outcome.signal, 3 <= outcome.step < 12) == (signal.SIGPIPE, True)
    assert Checkpoints(tmp_path / "run").steps()[-1] == outcome.step


def test_a_run_goes_on_from_another_working_directory(config, at_step, tmp_path, monkeypatch):
    [source] = config.data.sources
    monkeypatch.chdir(Path(source.path).parent)
    relative = replace(source, path=Path(source.path).name)
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    train_run(replace(config, data=replace(config.data, sources=(relative,))))
    monkeypatch.chdir(tmp_path)
    assert run(["run"]) == 0
    assert saved_config(tmp_path / "run").data.sources == (source,)


def test_the_compute_type_is_saved_as_what_it_was_on_this_platform(config, finished):
    automatic = replace(config, train=replace(config.train, compute_dtype="auto"))
    assert train_run(automatic).step == 12
    assert saved_config(finished).train.compute_dtype == "float32"


def test_the_checkpoint_with_the_lowest_held_out_loss_is_named_and_can_be_loaded(config, tmp_path, capsys):
    rising = replace(config.optimizer, learning_rate=3.0)
    train_run(replace(config, optimizer=rising, checkpoint=replace(config.checkpoint, keep=1)))
    best = min(read_metrics(tmp_path / "run"), key=lambda line: line.get("held_out_loss", np.inf))["step"]
    assert best < 12
    assert f"the checkpoint with the lowest held-out loss is of step {best} " in capsys.readouterr().out
    assert load_run_params(tmp_path / "run", "best")[2].step == best


def test_a_state_that_is_not_finite_is_never_saved_though_its_loss_is(config, tmp_path):
    optimizer = replace(exploding(config).optimizer, learning_rate=1e3, weight_decay=3e38)
    with pytest.raises(UserError, match=r"^step 1: the state after it is not finite, .*there is no checkpoint yet"):
        train_run(replace(exploding(config), optimizer=optimizer))
    assert Checkpoints(tmp_path / "run").steps() == []


def exploding(config):
    """Four steps of which the first throws the parameters far out, each saved."""
    return replace(
        config,
        train=replace(config.train, steps=4),
        optimizer=replace(config.optimizer, learning_rate=1e30, schedule=ScheduleConfig(warmup_steps=0)),
        checkpoint=replace(config.checkpoint, every=1),
    )


def test_a_checkpoint_folder_that_cannot_be_written_ends_the_run_and_leaves_it_whole(config, tmp_path, at_step):
    at_step(1, lambda: (tmp_path / "run" / "checkpoints").touch())
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 4 in .*there is none yet"):
        train_run(config)
    (tmp_path / "run" / "checkpoints").unlink()
    assert train_run(config).step == 12


def test_every_checkpoint_is_measured_so_that_the_best_is_kept(config, tmp_path):
    config = replace(config, eval=replace(config.eval, every=3), checkpoint=replace(config.checkpoint, keep=3))
    train_run(config)
    with Checkpoints(tmp_path / "run") as checkpoints:
        losses = [checkpoints.info(step).held_out_loss for step in checkpoints.steps()]
    assert len(losses) == 3
    assert None not in losses
    measured = [line["step"] for line in read_metrics(tmp_path / "run") if "held_out_loss" in line]
    assert measured == [3, 4, 6, 8, 9, 12]


def test_a_run_without_a_checkpoint_begins_anew_with_another_configuration(config, tmp_path, at_step, capsys):
    def stop() -> None:
        raise UserError("stop")

    at_step(1, stop)
    with pytest.raises(UserError, match="stop"):
        train_run(config)
    assert not (tmp_path / "run" / "checkpoints" / "4").exists()
    changed = replace(config, seed=5, tokenizer=replace(config.tokenizer, vocab_size=310))
    assert train_run(changed).step == 12
    assert f"the run in '{tmp_path / 'run'}' has no checkpoint yet and begins anew" in capsys.readouterr().out
    assert saved_config(tmp_path / "run").seed == 5
    assert load_tokenizer(tmp_path / "run" / "tokenizer.model").vocab_size == 310


def test_a_step_of_a_run_that_has_not_begun_is_refused_before_anything_is_made(config, tmp_path):
    with pytest.raises(UserError, match=r"--step 4: there is no checkpoint in '.*run' yet; leave it out"):
        train_run(config, Options(step=4))
    assert not (tmp_path / "run").exists()


def test_the_profiler_records_the_steps_that_were_asked_for(config, tmp_path):
    config = replace(config, profile_steps=1, eval=replace(config.eval, every=0))
    train_run(config)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    longer = replace(config, train=replace(config.train, steps=14), profile_steps=3)
    assert train_run(longer, Options(allow_change=True)).step == 14
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 2


def test_a_run_may_hold_no_text_out(config, tmp_path):
    config = replace(config, data=replace(config.data, validation_fraction=0.0))
    assert train_run(config).step == 12
    assert train_run(config).step == 12
    lines = read_metrics(tmp_path / "run")
    assert not any("held_out_loss" in line or "final_loss" in line for line in lines)
    assert (tmp_path / "run" / "loss.png").exists()


def test_a_model_larger_than_the_memory_is_refused_before_the_run(config):
    large = replace(config, model=replace(config.model, positions="learned", max_positions=2 * 10**9))
    with pytest.raises(UserError, match="the model does not fit"):
        train_run(large)
    assert not Path(large.output).exists()


def test_a_prompt_longer_than_the_positions_is_refused_before_the_run(config):
    long = replace(config, eval=replace(config.eval, prompts=("short", "long " * 40)))
    with pytest.raises(UserError, match=r"eval\.prompts\.1 = 'long .*: has \d+ tokens .*model.max_positions = 32"):
        train_run(long)
    assert not Path(long.output).exists()


def test_the_parameters_of_a_run_are_its_moving_average_or_on_request_the_raw_ones(config, uninterrupted, arrays):
    state = arrays(uninterrupted, config, 12)
    for ema, name in ((True, "ema"), (False, "params")):
        loaded, params, _ = load_run_params(uninterrupted, ema=ema)
        assert loaded == replace(config, output=str(uninterrupted))
        wanted = {path: x.tolist() for path, x in state.items() if path.startswith(f"{name}/")}
        assert {f"{name}/{path}": x.tolist() for path, x in flatten(params).items()} == wanted
    _, earlier, _ = load_run_params(uninterrupted, step=8)
    assert not np.array_equal(earlier["embedding"]["tokens"], state["ema/embedding/tokens"])
