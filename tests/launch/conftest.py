"""A machine for the launchers: a PATH with the few programs they need and nothing else, and stand-ins for the rest."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/pretrain/quickstart.py")

NEEDED = [
    *(
        "bash",
        "basename",
        "cat",
        "cp",
        "date",
        "dirname",
        "env",
        "grep",
        "gzip",
        "head",
        "id",
        "mkdir",
        "mv",
        "nohup",
        "paste",
    ),
    *("realpath", "rm", "sed", "setsid", "sleep", "sort", "tail", "tar", "touch"),
]

HOSTILE = [
    *("--name", "it's", "--text", 'say "hi" $HOME ${HOME} `id` $(id) \\ \n second\tline \\n', "", "ä€😀", "*", "~/x"),
    *("a=~", "-", "!x", "#c", "@name@", "&", "$$", "$(HOME)", "\x01\x7f", " lead", "trail ", "--end='"),
]
"""Words that shells, YAML and Kubernetes each read in a way of their own."""

RECORDS = 'printf "%s\\0" "$@" >"$RECORDS/$$"\n'
"""A stand-in's line that keeps the words it was given."""


@dataclass(frozen=True)
class Machine:
    """Runs launchers with the programs that were put on its PATH."""

    folder: Path

    @property
    def bin(self) -> Path:
        """The only folder on the PATH."""
        return self.folder / "bin"

    @property
    def home(self) -> Path:
        """Of the user."""
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """Of everything that runs here."""
        folders = {"PATH": self.bin, "HOME": self.home, "TMPDIR": self.folder, "RECORDS": self.folder / "records"}
        settings = {"LC_ALL": "C.UTF-8", "JAXLLM_RESTART_PAUSE": "0"}
        return {name: str(folder) for name, folder in folders.items()} | settings

    def put(self, name: str, body: str) -> None:
        """Puts a bash script on the PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(0o755)

    def checkout(self) -> Path:
        """A copy of what the launchers need of this one, without its virtual environment."""
        copy = self.folder / "checkout"
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, copy / name, dirs_exist_ok=True)
        return copy

    def run(self, *words: str, timeout: float = 60, **kwargs) -> subprocess.CompletedProcess:
        """Runs a launcher, by its name, or another program to its end."""
        with self.start(*words, **kwargs) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words: str, **kwargs) -> subprocess.Popen:
        """Starts one, with the usual answer to every signal, which a parent in the background may have changed."""
        program, *rest = words
        path = ROOT / "launch" / program
        words = [str(path) if path.exists() else str(self.bin / program), *rest]
        settings = {"cwd": self.folder, "env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, text=True, preexec_fn=default_signals, **(settings | kwargs))

    def records(self) -> list[list[str]]:
        """The words that each stand-in with `RECORDS` was given."""
        files = sorted((self.folder / "records").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        return [file.read_bytes().decode().split("\0")[:-1] for file in files]


def default_signals() -> None:
    """What a shell in the foreground gives to its child."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def without(options: Sequence[str], name: str) -> list[str]:
    """The options, less one and its value."""
    place = options.index(name)
    return [*options[:place], *options[place + 2 :]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One with nothing but `NEEDED` and a `jaxllm` that keeps its words."""
    made = Machine(tmp_path)
    for folder in (made.bin, made.home, tmp_path / "records"):
        folder.mkdir()
    for name in NEEDED:
        os.symlink(shutil.which(name), made.bin / name)
    made.put("jaxllm", RECORDS)
    return made
