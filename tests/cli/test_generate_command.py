import io
import json
import shutil
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxllm.cli.generate import SAMPLING, run
from jaxllm.cli.main import main
from jaxllm.config import (
    DataConfig,
    LoraConfig,
    ObjectiveConfig,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    TransformerConfig,
    TuningConfig,
    UserError,
)
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.generation import beam
from jaxllm.generation.generate import Generator
from jaxllm.models.adapters import trained_table
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import initial
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.params import Origin, write_origin
from jaxllm.train.run_folder import create
from jaxllm.train.state import State

MODEL = TransformerConfig(
    vocab_size=340, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24, max_positions=64, init_std=0.5
)

FITTING = {"data": DataConfig(sequence_length=64), "tokenizer": TokenizerConfig(vocab_size=300)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a checkpoint of two steps; the later one keeps a moving average too."""
    root = tmp_path_factory.mktemp("generate")
    train_tokenizer(
        ["the quick brown fox jumps over the lazy dog\n" * 40], TokenizerConfig(vocab_size=300), root / "t.model"
    )
    averages = {2: initial(jax.random.key(9), parameter_table(MODEL))}
    return saved(root / "run", RunConfig(model=MODEL, **FITTING), root / "t.model", averages)


def saved(folder, config, tokenizer, averages):
    """A run whose parameters after steps 1 and 2 were drawn from these numbers, with the averages of some steps."""
    create(folder, config, tokenizer)
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            params, count = initial(jax.random.key(step), parameter_table(config.model)), jnp.asarray(step, jnp.int32)
            state = State(count, params, (), averages.get(step), count)
            pieces = load_tokenizer(tokenizer).fingerprint
            checkpoints.save(state, Info(step=step, tokens=step, corpus="text", tokenizer=pieces))
        checkpoints.wait()
    return folder


def expected(folder, prompt, key=9, dtype=None, **named):
    """What the library gives for the parameters drawn from `key`."""
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    generator = Generator(MODEL, initial(jax.random.key(key), parameter_table(MODEL)), tokenizer, dtype=dtype)
    return prompt + generator.generate([prompt], 12, SAMPLING, **{"seeds": [0], **named})[0].text


def output(capsys, *argv):
    assert run([*map(str, argv), "--max-new-tokens", "12"]) == 0
    return capsys.readouterr()


def test_one_prompt_streams_its_text_and_reports_speed_beside_it(folder, capsys, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(1))
    out, err = output(capsys, folder, "the quick")
    assert out == expected(folder, "the quick") + "\n"
    assert len(flushed) > 3
    assert "tokens/s" in err


def test_weights_are_held_in_the_type_that_is_asked_for(folder, capsys):
    out, _ = output(capsys, folder, "the quick", "--dtype", "bfloat16")
    assert out == expected(folder, "the quick", dtype=jnp.bfloat16) + "\n"
    assert out != expected(folder, "the quick") + "\n"


def test_what_publishers_ask_for_in_vain_is_told(folder, capsys, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "generation_config.json").write_text(json.dumps({"num_beams": 4, "min_length": 9}))
    _, err = output(capsys, tmp_path / "run", "the quick")
    assert f"[not followed of '{tmp_path / 'run' / 'generation_config.json'}': num_beams = 4, min_length = 9; " in err
    assert (
        "generation_config.json': min_length = 9]" in output(capsys, tmp_path / "run", "the quick", "--beams", "2").err
    )
    assert "not followed" not in output(capsys, folder, "the quick").err


def test_sampling_is_as_publishers_say_unless_it_is_asked_for(folder, capsys, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "generation_config.json").write_text(json.dumps({"temperature": 5.0, "do_sample": True}))
    published = output(capsys, tmp_path / "run", "the quick").out
    assert published == output(capsys, folder, "the quick", "--temperature", "5", "--top-p", "1").out
    own = "--temperature", "0.8", "--top-p", "0.95"
    assert published != output(capsys, folder, "the quick").out
    assert output(capsys, tmp_path / "run", "the quick", *own).out == output(capsys, folder, "the quick").out


def test_several_prompts_and_samples_are_labelled_and_equal_each_alone(folder, capsys):
    out, _ = output(capsys, folder, "the", "fox", "--samples", "2", "--seed", "7", "--batch", "3")
    parts = [
        f"=== prompt {i} of 2, sample {j} of 2\n{expected(folder, prompt, seeds=[6 + j])}\n"
        for i, prompt in ((1, "the"), (2, "fox"))
        for j in (1, 2)
    ]
    assert out == "".join(parts)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_printed(folder, capsys):
    with pytest.raises(UserError, match="prompt 1 has "):
        run([str(folder), "the quick " * 60])
    with pytest.raises(UserError, match="prompt 3 has "):
        run([str(folder), "the", "fox", "the quick " * 60, "--batch", "1"])
    assert capsys.readouterr().out == ""


@pytest.fixture
def made(monkeypatch):
    """What the library generates for the command."""
    lists = []

    def recorded(function):
        return lambda *args, **named: lists.append(function(*args, **named)) or lists[-1]

    monkeypatch.setattr(beam, "beam_search", recorded(beam.beam_search))
    monkeypatch.setattr(Generator, "generate", recorded(Generator.generate))
    return lists


def test_beams_print_the_best_or_several_with_their_scores(folder, capsys, made):
    options = ("the", "--beams", "2", "--length-penalty", "0.5", "--early-stopping", "True")
    assert output(capsys, folder, *options).out == f"the{made[0][0][0].text}\n"
    out, err = output(capsys, folder, *options, "--samples", "2")
    best = enumerate(made[1][0], 1)
    lines = [f"=== prompt 1 of 1, best {i} of 2, score {b.score:.4f}\nthe{b.text}\n" for i, b in best]
    assert out == "".join(lines)
    assert "tokens/s" in err


def test_a_model_with_an_encoder_answers_and_an_encoder_alone_is_refused(folder, capsys, made, tmp_path):
    pairs = SourceConfig(kind="jsonl", path="pairs.jsonl", target_field="answer")
    model = replace(MODEL, architecture="encoder_decoder", positions="relative")
    config = RunConfig(model=model, objective=ObjectiveConfig(kind="seq2seq"), **FITTING)
    config = replace(config, data=replace(config.data, sources=(pairs,)))
    answering = saved(tmp_path / "pairs", config, folder / "tokenizer.model", {})
    assert output(capsys, answering, "the").out == made[0][0].text + "\n"
    model = replace(MODEL, architecture="encoder")
    config = RunConfig(model=model, objective=ObjectiveConfig(kind="masked"), **FITTING)
    with pytest.raises(UserError, match=r"model\.architecture = 'encoder': it cannot generate text"):
        run([str(saved(tmp_path / "encoder", config, folder / "tokenizer.model", {})), "the"])


@pytest.mark.parametrize(("options", "key"), [((), 9), (("--no-ema",), 2), (("--step", 1), 1)])
def test_step_and_average_choose_the_parameters(folder, capsys, options, key):
    assert output(capsys, folder, "the", *options).out == expected(folder, "the", key) + "\n"


def test_a_prompt_may_come_from_the_standard_input_or_be_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("over the"))
    assert output(capsys, folder, "-").out == expected(folder, "over the") + "\n"
    assert output(capsys, folder).out == expected(folder, "") + "\n"


def test_text_ends_before_a_stop_string(folder, capsys):
    text = expected(folder, "the")
    stop = text[5:7]
    out = output(capsys, folder, "the", "--stop", "never there", "--stop", stop).out
    assert out == "the" + text[3:].partition(stop)[0] + "\n"


def test_ctrl_c_ends_the_line_and_the_command(folder, capsys, monkeypatch):
    def interrupted(*_, on_text, **__):
        on_text(0, " quick")
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "generate", interrupted)
    assert main(["generate", str(folder), "the"]) == 130
    assert capsys.readouterr().out == "the quick\n"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["{}/nowhere", "the"], "not a run folder"),
        (["{}", "the", "--step", "7"], r"no checkpoint of step 7 .* there are: 1, 2"),
        (["{}", "the", "--top-p", "1.5"], "'top_p': expected above 0 and at most 1, got 1.5"),
        (["{}", "the", "--samples", "0"], "--samples: expected 1 or more, got 0"),
        (["{}", "the", "--seed", "-1"], "--seed: expected 0 to 4294967295, got -1"),
        (["{}", "the", "--beams", "2", "--samples", "3"], r"--samples: expected 1 to 2 \(--beams\), got 3"),
        (["{}", "the", "--beams", "2", "--top-k", "5"], "--beams: the likeliest text is not drawn"),
        (["{}", "the", "--beams", "-1"], "--beams: expected 0 or more, got -1"),
        (["{}", "the", "--length-penalty", "2"], "--length-penalty, .* of a search, which --beams turns on"),
        (["{}", "the", "--stop", ""], "stop: a stop string has at least one character"),
        (["{}", "the " * 90], r"prompt 1 has \d+ tokens; expected 1 to 64"),
        (["{}", "the", "a\udcff"], "prompt 2 is not UTF-8 text"),
    ],
)
def test_what_will_not_do_is_named(folder, argv, complaint):
    with pytest.raises(UserError, match=complaint):
        run([argument.format(folder) for argument in argv])


def test_a_last_smaller_batch_compiles_nothing(folder, capsys, monkeypatch):
    shapes = []
    compiled = Generator._compiled
    monkeypatch.setattr(Generator, "_compiled", lambda g, m, x, s: shapes.append(x[0].shape) or compiled(g, m, x, s))
    out, _ = output(capsys, folder, "the", "fox", "dog", "--batch", "2")
    assert shapes[0] == shapes[1]
    assert out.count("=== prompt") == 3


def test_a_configuration_that_was_damaged_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"kv_heads": 1', '"kv_heads": 0'))
    with pytest.raises(UserError, match=r"model\.kv_heads = 0: must be at least 1"):
        run([str(tmp_path / "run"), "the"])


def test_no_checkpoint_is_the_best_where_none_was_measured(folder):
    with pytest.raises(UserError, match=r"no checkpoint of the run in .* has a held-out loss; name one by its step"):
        run([str(folder), "the", "--step", "best"])


def test_a_tokenizer_that_is_not_the_runs_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    train_tokenizer(["another text\n" * 40], TokenizerConfig(vocab_size=280), tmp_path / "run" / "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer '.*tokenizer\.model' is not the one that this run was trained"):
        run([str(tmp_path / "run"), "the"])


def test_an_unknown_option_names_the_nearest(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run([str(folder), "the", "--temperatur", "1"])
    assert caught.value.code == 2
    assert "--temperature" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A run that has trained LoRA on that model."""
    made = tmp_path_factory.mktemp("adapter") / "lora"
    tuning = TuningConfig(method="lora", lora=LoraConfig(rank=2))
    config = RunConfig(base=str(folder), model=MODEL, tuning=tuning, **FITTING)
    create(made, config, folder / "tokenizer.model")
    drawn = initial(jax.random.key(5), trained_table(config))
    trained = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(6), x.shape), drawn)
    with Checkpoints(made) as checkpoints:
        pieces = load_tokenizer(folder / "tokenizer.model").fingerprint
        checkpoints.save({"params": trained}, Info(step=1, tokens=1, corpus="text", tokenizer=pieces))
        checkpoints.wait()
    return made


def test_each_prompt_may_have_an_adapter_of_its_own(folder, adapter, capsys):
    both = output(capsys, folder, "the quick", "brown fox", "--adapter", adapter, "--adapter", "none").out
    alone = [output(capsys, run, prompt).out for run, prompt in ((adapter, "the quick"), (folder, "brown fox"))]
    labels = [f"=== prompt {n} of 2, sample 1 of 1\n" for n in (1, 2)]
    assert both == "".join(label + text for label, text in zip(labels, alone, strict=True))
    assert alone[0] != output(capsys, folder, "the quick").out
    assert output(capsys, folder, "the quick", "--adapter", adapter).out == alone[0]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["a", "b", "c", "--adapter", "{}", "--adapter", "none"], "expected one, or one for each of 3 prompts; got 2"),
        (["a", "--adapter", "{}", "--beams", "2"], "`jaxllm adapter merge` makes one"),
        (["a", "b", "the " * 60, *["--adapter", "none"] * 2, "--adapter", "{}"], "prompt 3 has .* tokens; expected"),
        (["a", "--adapter", "{base}"], "has trained all of its parameters, and is no adapter"),
    ],
)
def test_adapters_that_will_not_do_are_named(folder, adapter, more, complaint):
    with pytest.raises(UserError, match=complaint):
        run([str(folder), *(word.format(adapter, base=folder) for word in more)])


def test_an_adapter_of_another_base_is_refused(folder, adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "other")
    write_origin(other, Origin(2, "0123456789abcdef"))
    with pytest.raises(UserError, match="is an adapter for another base"):
        run([str(folder), "a", "--adapter", str(other)])
    with pytest.raises(UserError, match="is an adapter for another base"):
        run([str(other), "a"])
