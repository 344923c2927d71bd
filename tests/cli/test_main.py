import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxllm.cli import main as cli
from jaxllm.config import UserError

CALL = "import sys; from jaxllm.cli.main import main; sys.exit(main())"


def start(*argv: str, body: str = CALL, **kwargs) -> subprocess.Popen:
    """`jaxllm ARGV` as a process."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    return subprocess.Popen([sys.executable, "-c", body, *argv], text=True, **pipes)


@pytest.fixture
def command(monkeypatch):
    """Sets what `jaxllm model` does."""

    def put(run):
        monkeypatch.setattr("jaxllm.cli.model.run", run)

    return put


def raises(error):
    def run(argv):
        raise error

    return run


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_names_every_command_within_two_seconds_and_without_jax(argv):
    body = "import sys; from jaxllm.cli.main import main; main(); assert 'jax' not in sys.modules"
    begin = time.monotonic()
    out, err = start(*argv, body=body).communicate(timeout=60)
    assert time.monotonic() - begin < 2
    assert err == ""
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_each_command_is_a_module_that_exists():
    for module, _ in cli.COMMANDS.values():
        assert importlib.util.find_spec(module), module


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "jaxllm 0.1.0\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["trian", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no command 'trian'; did you mean 'train'? (jaxllm --help lists all)\n"
    )


def test_a_command_gets_the_words_after_it_and_gives_the_exit_status(command):
    seen = []
    command(lambda argv: seen.append(argv) or 7)
    assert cli.main(["model", "a", "--b"]) == 7
    assert seen == [["a", "--b"]]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("field x: mend it"), "error: field x: mend it\n"),
        (OSError(errno.ENOSPC, "No space", "/a/b"), "error: '/a/b': the disk is full; make room or name another"),
        (OSError(errno.ENOSPC, "No space"), "error: the disk is full; make room or name another folder\n"),
        (OSError(errno.EDQUOT, "Quota", "f"), "error: 'f': your disk quota is used up"),
        (OSError(errno.EROFS, "Read-only", "f"), "error: 'f': the file system is read-only; name another folder"),
        (OSError(errno.EACCES, "Denied", "f"), "error: 'f': permission denied; mend the permissions"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.\nBuffers:"),
            "error: the memory is not enough (RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes.); training needs",
        ),
        (MemoryError("Unable to allocate 4 TiB"), "error: the memory is not enough (Unable to allocate 4 TiB); train"),
        (MemoryError(), "error: the memory is not enough (MemoryError); training needs less of it"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_status_two(command, capsys, error, message):
    command(raises(error))
    assert cli.main(["model"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_what_the_user_cannot_mend_keeps_its_traceback(command):
    command(raises(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["model"])
    command(raises(KeyError("bug")))
    with pytest.raises(KeyError):
        cli.main(["model"])
    command(raises(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(["model"])


def test_an_interruption_is_one_line_and_status_130(command, capsys):
    command(raises(KeyboardInterrupt()))
    assert cli.main(["model"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_ends_a_command_without_a_traceback_after_it_has_tidied_up(number, said):
    body = (
        "import signal, sys, time, jaxllm.cli.model as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def run(argv):\n"
        "    try:\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('tidied up')\n"
        "m.run = run\n"
    )
    process = start("model", body=body + CALL)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("tidied up\n", f"{said}\n")
    assert process.returncode == 128 + number


def test_a_signal_within_an_import_comes_once_it_is_done(command, capsys, monkeypatch, tmp_path):
    (tmp_path / "signalled.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def run(argv):
        import signalled  # noqa: F401

        print("imported", flush=True)
        time.sleep(60)

    command(run)
    assert cli.main(["model"]) == 143
    assert capsys.readouterr() == ("imported\n", "terminated\n")


def test_a_sigterm_that_is_ignored_or_handled_already_stays_so(command):
    before, seen = signal.getsignal(signal.SIGTERM), []
    command(lambda argv: signal.raise_signal(signal.SIGTERM) or 0)
    try:
        for handler in (signal.SIG_IGN, lambda number, frame: seen.append(number)):
            signal.signal(signal.SIGTERM, handler)
            assert cli.main(["model"]) == 0
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_a_reader_that_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    process = start("--help", stdout=write)
    os.close(write)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_standard_output_on_a_full_disk_is_told_once():
    with open("/dev/full", "w") as full:
        process = start("--help", stdout=full)
    assert process.communicate(timeout=60)[1] == "error: the disk is full; make room or name another folder\n"
    assert process.returncode == 2


def test_closed_standard_streams_are_no_error():
    program = "import sys; from jaxllm.cli.main import main; sys.exit(main(['--help']))"
    assert subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{program}" >&- 2>&-']).returncode == 0


def test_compiled_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "here"))
    cli.set_environment()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "here" / "xla")
    assert (tmp_path / "here" / "xla").is_dir()
    assert float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]) == 0


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    cli.set_environment()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"


def test_a_cache_that_cannot_be_made_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "file"))
    cli.set_environment()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_second_process_finds_the_compiled_programs_of_the_first(tmp_path):
    body = (
        "from jaxllm.cli.main import set_environment; set_environment()\n"
        "import jax\n"
        "jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()\n"
    )
    kept = []
    for _ in range(2):
        assert start(body=body).communicate(timeout=120) == ("", "")
        kept.append(sorted(p.name for p in (tmp_path / "cache" / "xla").glob("*-cache")))
    assert kept[0] == kept[1] != []
