"""Conversations with a run whose model always says " fox 🦊" and ends its turn by <|end|>, which is not its eos."""

import builtins
import contextlib
import io
import itertools
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from jaxllm.cli.chat import run
from jaxllm.cli.main import main
from jaxllm.config import DataConfig, RunConfig, TokenizerConfig, UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.generation.chat import Conversation
from jaxllm.generation.generate import Generator
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.run_folder import create
from jaxllm.train.state import State
from tests.generation.conftest import TEXT, chain

SOURCE = (
    "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('I do') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SAID = " fox 🦊"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    train_tokenizer([TEXT * 20], TokenizerConfig(vocab_size=340), root / "t.model")
    tokenizer = load_tokenizer(root / "t.model")
    ids = tokenizer.encode_with_specials("<|assistant|>" + SAID + "<|end|>")
    model, params = chain(dict(itertools.pairwise(ids)), tokenizer.vocab_size)
    fitting = {"data": DataConfig(sequence_length=64), "tokenizer": TokenizerConfig(vocab_size=340)}
    create(root / "run", RunConfig(model=model, **fitting), root / "t.model")
    with Checkpoints(root / "run", keep=1) as checkpoints:
        count = jnp.asarray(1, jnp.int32)
        info = Info(step=1, tokens=1, corpus="text", tokenizer=tokenizer.fingerprint)
        checkpoints.save(State(count, params, (), None, count), info)
        checkpoints.wait()
    (root / "run" / "chat_template.jinja").write_text(SOURCE)
    return root / "run"


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch, programs={}):  # noqa: B006  shared on purpose
    def sharing(generator, *args, init=Generator.__init__, **named):
        init(generator, *args, **named)
        generator.programs = programs

    monkeypatch.setattr(Generator, "__init__", sharing)


@pytest.fixture
def asked(monkeypatch):
    """The conversations, as they were when something was asked."""
    seen = []

    def recorded(talk, message, on_text, ask=Conversation.ask):
        seen.append([*talk.messages(), {"role": "user", "content": message}])
        return ask(talk, message, on_text)

    monkeypatch.setattr(Conversation, "ask", recorded)
    return seen


def feed(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def contents(messages):
    return [message["content"] for message in messages]


def test_messages_of_the_command_line_are_turns(folder, capsys, asked):
    argv = [str(folder), "--message", "one", "--message", "/two", "--system", "the"]
    assert run(argv) == 0
    out, err = capsys.readouterr()
    assert out == f"{SAID}\n" * 2
    assert err == ""
    assert contents(asked[1]) == ["the", "one", SAID, "/two"]


def test_an_answer_streams(folder, capsys, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(1))
    run([str(folder), "--message", "one"])
    assert len(flushed) > 2


def test_without_a_terminal_each_line_is_a_turn_or_a_command(folder, capsys, monkeypatch, tmp_path, asked):
    saved = tmp_path / "saved.jsonl"
    feed(
        monkeypatch,
        *("one", "", "/undo", " /two", "/system the", "three", f"/save {saved}"),
        *("/reset", "/system", "four", "/quit", "five"),
    )
    assert run([str(folder)]) == 0
    assert capsys.readouterr().out == f"{SAID}\n" * 4
    assert list(map(contents, asked)) == [["one"], [" /two"], ["the", " /two", SAID, "three"], ["four"]]
    messages = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert contents(messages) == ["the", " /two", SAID, "three", SAID]
    assert "🦊" in saved.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/rest", "there is no '/rest'; did you mean '/reset'?"),
        ("/undo", "there is no turn to take back"),
        ("/save", "/save takes the name of a file"),
        ("/save {}/config.json", "config.json' is there already; name another file"),
        ("/save {}/nowhere/x", "cannot write "),
        ("refuse", "chat_template.jinja, line 1: I do"),
        ("word " * 99, "tokens, and the model reads 64; say it in fewer words"),
        ("a\udcff", "the message is not UTF-8 text"),
    ],
)
def test_a_line_that_will_not_do_is_told_and_the_next_is_taken(folder, capsys, monkeypatch, line, complaint):
    feed(monkeypatch, line.format(folder), "one")
    assert run([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert complaint in err
    assert out == f"{SAID}\n"


def test_what_no_longer_fits_is_told(folder, capsys):
    assert run([str(folder), *["--message", "the lazy dog"] * 9]) == 0
    assert "longer than the model reads: its oldest turns (1 by now) are left out" in capsys.readouterr().err


def test_an_answer_that_was_cut_is_told(folder, capsys):
    assert run([str(folder), "--message", "the" + " the" * 57]) == 0
    assert "the answer was cut off" in capsys.readouterr().err


def test_help_lists_every_command(folder, capsys, monkeypatch):
    feed(monkeypatch, "/help")
    run([str(folder)])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["/system", "/undo", "/reset", "/save", "/help", "/quit"]


# What the publishers of a model say


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run"


def settings(monkeypatch, copy, *options):
    """The sampling of a conversation in `copy`, and the tokens that end its answers."""
    seen = []
    monkeypatch.setattr(
        Generator, "tokens", lambda *a: seen.append((a[3], a[0].ends)) or iter([[a[0].tokenizer.eos_id]])
    )
    run([str(copy), "--message", "one", *options])
    return seen[0]


def test_generation_config_is_followed_where_no_option_is_given(copy, monkeypatch, capsys):
    said = {"eos_token_id": [2, 7], "do_sample": True, "temperature": 0.3, "top_k": 9}
    assert settings(monkeypatch, copy)[0].temperature == 0.8
    (copy / "generation_config.json").write_text(json.dumps(said))
    sampling, ends = settings(monkeypatch, copy)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.3, 9, 1.0)
    assert ends == {2, 7, 8}  # 8 is <|end|>, with which the template ends an answer
    sampling, _ = settings(monkeypatch, copy, "--temperature", "0.8")
    assert (sampling.temperature, sampling.top_k) == (0.8, 9)


def test_generate_ends_by_the_same_tokens(copy, capsys):
    argv = ["generate", str(copy), "--max-new-tokens", "9", "<|assistant|>"]
    fox, end = (load_tokenizer(copy / "tokenizer.model").token_id(name) for name in ("\u2581fox", "<|end|>"))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [fox, end, *range(300)]}))
    assert main(argv) == 0
    assert "ended by eos" in capsys.readouterr().err


# In a terminal


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(folder, capsys, monkeypatch, asked):
    lines = iter(["one", "/nothing", "two"])

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def interrupted(generator, *rest, tokens=Generator.tokens):
        steps = tokens(generator, *rest)
        yield next(steps)
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield from steps

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Generator, "tokens", interrupted)
    assert run([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == f" fox\n{SAID}\n\n"
    assert "[stopped]" in err
    assert "error: there is no '/nothing'" in err
    assert contents(asked[1]) == ["one", " fox", "two"]


def test_ctrl_c_ends_a_script(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "tokens", interrupted)
    assert main(["chat", str(folder), "--message", "one", "--message", "two"]) == 130
    assert capsys.readouterr().out == "\n"


def test_a_real_terminal_edits_lines_and_ctrl_c_at_its_prompt_ends_the_command(folder):
    outer, inner = pty.openpty()
    # A background job's children ignore Ctrl-C.
    listens = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listens}; from jaxllm.cli.main import main; sys.exit(main())"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inner)
    process = subprocess.Popen([sys.executable, "-c", code, "chat", str(folder)], **streams)
    os.close(inner)
    shown = b""

    def until(text):
        nonlocal shown
        while text not in shown:
            assert select.select([outer], [], [], 120)[0], shown
            shown += os.read(outer, 4096)
        shown = shown.partition(text)[2]

    with process:
        try:
            until(b"> ")
            os.write(outer, b"twi\x7fo\n")
            until(SAID.encode())
            until(b"> ")
            while process.poll() is None:  # a signal between the prompt and the wait for a line wakes nobody
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            until(b"interrupted")
        finally:
            process.kill()
    os.close(outer)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["{}/nowhere"], "not a run folder"),
        (["{}", "--step", "7"], "no checkpoint of step 7"),
        (["{}", "--top-p", "1.5"], "'top_p': expected above 0 and at most 1, got 1.5"),
        (["{}", "--max-new-tokens", "0"], "--max-new-tokens: expected 1 or more, got 0"),
        (["{}", "--seed", "-1"], "--seed: expected 0 to 4294967295, got -1"),
    ],
)
def test_what_will_not_do_is_named(folder, argv, complaint):
    with pytest.raises(UserError, match=complaint):
        run([argument.format(folder) for argument in argv])


def test_a_folder_without_a_template_is_told_before_its_model_is_loaded(copy, monkeypatch):
    monkeypatch.setattr("jaxllm.train.params.load_run_params", None)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(
        UserError, match=r"has no chat template, neither chat_template\.jinja nor one in tokenizer_config"
    ):
        run([str(copy)])


def test_a_standard_input_that_is_not_utf_8_is_told(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(UserError, match="the standard input is not UTF-8 text"):
        run([str(folder)])
