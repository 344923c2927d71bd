"""Hands `jaxllm` bad input of every kind, each in a process of its own, and prints what it says as a Markdown table.

    python tools/bad_inputs.py               # about 4 minutes
    python tools/bad_inputs.py parquet disk  # only the cases with one of these words in their names

Each case must end with status 2 and one message, without a traceback; every file that was there must be as it was,
and nothing new may lie beside them but whole caches. Exit status 1 if one does not. The cases with a full disk and
with a read-only file system mount one of their own by `unshare`, and are left out where that is not allowed.
"""

import argparse
import fcntl
import gzip
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _bad_models import Case, model_cases
from _bad_tuning import LORA, tuning_cases

RECIPE = """
from jaxllm.config import *


def recipe() -> RunConfig:
    return RunConfig(
        name="tiny",
        model=TransformerConfig(
            vocab_size=320, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, ffn=32, max_positions=64
        ),
        data=DataConfig(
            sources=(SourceConfig(kind="text", path="texts"),), sequence_length=32, validation_fraction=0.2
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        train=TrainConfig(steps=8, batch_size=4),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
        eval=EvalConfig(prompts=()),
        checkpoint=CheckpointConfig(every=4),
    )
"""
WORDS = ["def", "class", "return", "self", "value", "name", "index", "for", "while", "None", "import"]
PROGRAM = (sys.executable, "-c", "import sys; from jaxllm.cli.main import main; sys.exit(main())")


def train(*options: str) -> Callable[[], Sequence[str]]:
    """`jaxllm train` of the good recipe with such options."""
    return lambda: ["train", "recipe.py", *options]


def source(kind: str, path: str, content: bytes | None = None, *options: str) -> Callable[[], Sequence[str]]:
    """`jaxllm train` on another source, whose file has such content."""

    def arrange() -> Sequence[str]:
        if content is not None:
            Path(path).write_bytes(content)
        return ["train", "recipe.py", "--data.sources.0.kind", kind, "--data.sources.0.path", path, *options]

    return arrange


def file(path: str, content: str | bytes, *argv: str) -> Callable[[], Sequence[str]]:
    """Such words, when a file has such content."""

    def arrange() -> Sequence[str]:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        return argv

    return arrange


def mounted(options: str, *argv: str) -> Callable[[], Sequence[str]]:
    """Such words, where the folder `small` is a file system of its own, mounted with such options."""

    def arrange() -> Sequence[str]:
        Path("small").mkdir()
        return [f'mount -t tmpfs -o {options} none small && exec "$@"', *argv]

    return arrange


def configuration_cases() -> Iterator[Case]:
    """Commands, recipes and fields."""
    yield "unknown command", lambda: ["trian", "recipe.py"]
    yield "no such recipe", lambda: ["train", "recipes.py"]
    yield "recipe with a syntax error", file("bad.py", "def recipe(:\n", "train", "bad.py")
    yield "recipe without recipe()", file("bad.py", "x = 1\n", "train", "bad.py")
    field = "from jaxllm.config import *\n\ndef recipe():\n    return TrainConfig(stepz=3)\n"
    yield "recipe with an unknown field", file("bad.py", field, "train", "bad.py")
    yield "binary file as recipe", file("bad.py", b"\x7fELF\x02\x00", "train", "bad.py")
    yield "unknown option", train("--optimizer.learning-rat", "1")
    yield "wrong type", train("--train.steps", "ten")
    yield "not one of the choices", train("--optimizer.kind", "sgd")
    yield "value out of its range", train("--train.steps", "0")
    yield "many mistakes at once", train("--seed", "-1", "--model.kv-heads", "3", "--optimizer.b2", "1.5")
    yield "sequence longer than positions", train("--data.sequence-length", "128")
    yield "KV heads that do not divide", train("--model.heads", "8", "--model.kv-heads", "3")
    yield (
        "position table larger than the memory",
        train("--model.positions", "learned", "--model.max-positions", "2000000000"),
    )
    yield "model larger than the memory", train("--model.layers", "100000", "--model.width", "4096")
    yield "mesh larger than the devices", train("--mesh.data", "16", "--train.batch-size", "16")
    yield "batch that the mesh does not divide", train("--train.batch-size", "12", "--mesh.data", "8")
    yield (
        "heads that the mesh does not divide",
        train("--mesh.tensor", "4", "--mesh.data", "2", "--train.batch-size", "8"),
    )
    yield "warm-up longer than the run", train("--optimizer.schedule.warmup-steps", "9")
    yield "config.json that is not JSON", file("folder/config.json", "{", "train", "folder")
    yield "config.json with an unknown key", file("folder/config.json", '{"sede": 1}', "train", "folder")
    yield "folder that is no run", lambda: ["train", "texts"]


def data_cases() -> Iterator[Case]:
    """Sources, tokenizers and caches."""
    yield "missing file", source("text", "textz")
    yield "folder without a file of the kind", source("parquet", "texts")
    yield "glob that matches nothing", source("code", "texts/**/*.rs")
    yield "empty corpus", source("text", "empty.txt", b"")
    yield "single document", source("text", "one.txt", b"one document\n")
    yield "invalid UTF-8", source("text", "latin.txt", "caf\xe9\n".encode("latin-1"))
    yield "binary file", source("text", "binary.txt", b"\x7fELF\x02\x00\x00\x01")
    yield "truncated gzip", source("text", "cut.txt.gz", gzip.compress(b"text\n" * 999)[:40])
    yield "JSON lines that are not JSON", source("jsonl", "bad.jsonl", b'{"text": "a"}\n{"text": \n')
    yield "JSON lines without the field", source("jsonl", "bad.jsonl", b'{"body": "a"}\n')
    yield "JSON lines whose field is no text", source("jsonl", "bad.jsonl", b'{"text": 3}\n')
    yield "corrupt Parquet file", source("parquet", "bad.parquet", b"PAR1 and nothing")
    yield "unknown TFDS name", source("tfds", "imdb_reveiws")
    yield "source without a path", train("--data.sources.0.kind", "jsonl", "--data.sources.0.path", "")
    yield "unknown source", lambda: ["tokenizer", "--out", "t.model", "--sources", "texts/data.xyz"]
    yield "tokenizer that is missing", train("--tokenizer.path", "none.model")
    yield "tokenizer that is damaged", file("bad.model", b"\x0a\x0e\x01", *train("--tokenizer.path", "bad.model")())
    yield "tokenizer of another kind", train("--tokenizer.path", "recipe.py")
    yield (
        "vocabulary larger than the text allows",
        train("--tokenizer.vocab-size", "90000", "--model.vocab-size", "90000"),
    )
    yield "vocabulary smaller than the text needs", train("--tokenizer.vocab-size", "270")
    yield "vocabulary larger than the model's", train("--model.vocab-size", "300")
    yield "tokenizer file with another ending", lambda: ["tokenizer", "--out", "t.bin", "--sources", "text:texts"]

    def damaged_cache() -> Sequence[str]:
        tokens = next(Path("cache/data/corpora").glob("*/train-0.tokens"))
        tokens.write_bytes(tokens.read_bytes()[:-1] + b"\xff")
        return ["train", "recipe.py"]

    yield "damaged cache", damaged_cache
    yield "cache on a full disk", mounted("size=16k", *train("--data.cache-dir", "small/cache")())
    yield "cache on a read-only disk", mounted("ro", *train("--data.cache-dir", "small/cache")())


def chats(content: str, *options: str) -> Callable[[], Sequence[str]]:
    """`jaxllm train` on conversations, whose file has such content."""
    kind = ("--objective.kind", "sft", "--data.sources.0.format", "auto")
    tokenizer = ("--tokenizer.path", "other.model", "--tokenizer.chat-template", "plain")
    return source("jsonl", "chats.jsonl", content.encode(), *kind, *tokenizer, *options)


def conversation_cases() -> Iterator[Case]:
    """Instruction data, chat templates and mixtures."""
    good = "".join(f'{{"prompt": "def {i}", "completion": "class", "task": "a"}}\n' for i in range(40))
    yield "conversations that are none", chats(good + '{"prompt": "def"}\n{"messages": [{"role": "asistant"}]}\n{')
    yield "conversation without an answer", chats('{"messages": [{"role": "user", "content": "def"}]}\n')
    said = '{"messages": [{"role": "user", "content": "def"}, {"role": "assistant", "content": "a"}], '
    yield "answers without a weight", chats(said.replace('"a"}', '"a", "weight": 0}') + '"id": 1}\n')
    yield "tools that are no objects", chats(said + '"tools": ["get_weather"]}\n')
    yield "calls of an old form", chats(said.replace('"a"}', '"a", "function_call": {"name": "f"}}') + '"id": 1}\n')
    yield "conversations without a template", chats(good, "--tokenizer.chat-template", "None")
    yield "chat template that is missing", chats(good, "--tokenizer.chat-template", "none.jinja")
    yield "chat template whose tokens the tokenizer lacks", chats(good, "--tokenizer.chat-template", "chatml")

    def template(text: str) -> Callable[[], Sequence[str]]:
        def arrange() -> Sequence[str]:
            Path("own.jinja").write_text(text)
            return chats(good, "--tokenizer.chat-template", "own.jinja")()

        return arrange

    yield "chat template that is not Jinja", template("{% for m in messages %}")
    yield (
        "chat template without a generation prompt",
        template("{% for m in messages %}[{{ m.content }}]</s>{% endfor %}"),
    )
    yield (
        "chat template that leaves the answer out",
        template("{% for m in messages %}[{{ m.role }}]</s>{% endfor %}{% if add_generation_prompt %}[{% endif %}"),
    )
    call = '{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}'
    yield (
        "chat template that leaves calls of tools out",
        chats("".join(f'{{"messages": [{{"role": "user", "content": "def {i}"}}, {call}]}}\n' for i in range(40))),
    )
    yield "chat template without an end", template("{{ messages | map(attribute='content') | join }}")
    made = ("--data.sources.0.format", "prompt_completion", "--data.sources.0.prompt")
    yield "prompt that is not Jinja", chats(good, *made, "{{ prompt")
    yield "prompt of a field that is not there", chats(good, *made, "{{ promt }}")
    yield "conversations for another objective", chats(good, "--objective.kind", "causal")
    task, held_out = ("--data.sources.0.task-field", "task"), ("--data.sources.0.held-out-tasks", "b")
    yield "held-out task that is not there", chats(good, *task, *held_out)
    yield "held-out task that is not read", chats(good, *task, *held_out, "--data.sources.0.tasks", "a")
    yield "task that is not there", chats(good, *task, "--data.sources.0.tasks", "a", "b")
    yield "tasks without their field", chats(good, "--data.sources.0.tasks", "a")
    group = '{"prompt": "def", "completion": "class", "group": [1]}\n'
    yield "group of rows that is no text", chats(group, "--data.sources.0.group-field", "group")
    yield "conversations to weigh where there are none", train("--objective.weigh", "conversations")
    yield "mixture's cap that is not read", chats(good, "--data.mixture.cap", "9")
    yield "task that cannot be shown", lambda: ["data", "show", "recipe.py", "--task", "text"]


def run_cases() -> Iterator[Case]:
    """Run folders, checkpoints and generation; `run` is a finished run."""
    yield "run folder that holds something else", lambda: ["train", "recipe.py", "--output", "texts"]
    yield "run folder on a full disk", mounted("size=256k", *train("--output", "small/run")())
    yield "run folder on a read-only disk", mounted("ro", *train("--output", "small/run")())
    yield "changed field of a started run", train("--output", "run", "--seed", "7")
    yield "checkpoint that is not there", lambda: ["train", "run", "--step", "5"]

    def damaged_checkpoint() -> Sequence[str]:
        path = max(Path("run/checkpoints/8/state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
        path.write_bytes(path.read_bytes()[:-7])
        return ["train", "run"]

    yield "damaged checkpoint", damaged_checkpoint

    def another_tokenizer(*argv: str) -> Sequence[str]:
        shutil.copyfile("other.model", "run/tokenizer.model")
        return argv

    yield "another run's tokenizer", lambda: another_tokenizer("train", "run")

    yield "generation with another run's tokenizer", lambda: another_tokenizer("generate", "run", "def")

    def lost_tokenizer() -> Sequence[str]:
        Path("run/tokenizer.model").unlink()
        return ["generate", "run", "def"]

    yield "run without its tokenizer", lost_tokenizer

    def busy() -> Sequence[str]:
        fcntl.flock(os.open("run/log.txt", os.O_RDWR), fcntl.LOCK_EX)  # until this process forgets the case
        return ["train", "run"]

    yield "run that another process trains", busy

    def changed_text() -> Sequence[str]:
        Path("texts/0.txt").write_text("another text\n")
        return ["train", "run", "--data.sources.0.path", "texts"]

    yield "text that has changed", changed_text
    yield (
        "loss that is not finite",
        train("--output", "run-nan", "--optimizer.learning-rate", "1e30", "--eval.every", "0"),
    )
    yield "generation from no run", lambda: ["generate", "texts", "def"]
    yield "generation at a step that was not kept", lambda: ["generate", "run", "def", "--step", "3"]
    yield "checkpoint of a run that has not begun", train("--output", "new", "--step", "4")
    yield "prompt longer than the positions", lambda: ["generate", "run", "def class " * 60]
    yield "sampling setting out of its range", lambda: ["generate", "run", "def", "--top-p", "1.5"]
    yield "seed that is negative", lambda: ["generate", "run", "def", "--seed", "-1"]
    row = '{"prompt": "def", "answer": "x"}\n'
    evaluation = ("eval", "run", "rows.jsonl", "--max-new-tokens", "2")
    yield "evaluation of a row without a prompt", file("rows.jsonl", row + '{"text": "def"}\n', *evaluation)
    yield "evaluation of rows that are not JSON", file("rows.jsonl", "{bad\n", *evaluation)
    yield "evaluation by a metric of choices", file("rows.jsonl", row, *evaluation, "--metrics", "acc")
    yield "evaluation beside other results", file("rows.jsonl", row, *evaluation, "--compare", "run/config.json")
    yield "evaluation of an empty text", file("none.txt", "", "eval", "run", "--text", "none.txt")
    yield "imported model on a full disk", mounted("size=64k", "import", "hf", "small/ours")
    yield "imported model on a read-only disk", mounted("ro", "import", "hf", "small/ours")
    yield "exported model on a full disk", mounted("size=16k", "export", "run", "small/hf")
    yield "exported GGUF file on a full disk", mounted("size=16k", "export", "run", "small/model.gguf")


KEEPS_A_RUN = {"loss that is not finite"}
"""Cases that stop half-way by design: what they had saved stays."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the cases with one of these in their names")
    options = parser.parse_args()
    kinds = configuration_cases, data_cases, conversation_cases, tuning_cases, run_cases, model_cases
    cases = [case for kind in kinds for case in kind()]
    wanted = [case for case in cases if not options.words or any(word in case[0] for word in options.words)]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as root:
        good = Path(root, "good")
        prepare(good)
        print("| bad input | command | message |\n| --- | --- | --- |")
        for name, arrange in wanted:
            work = Path(root, "work")
            shutil.copytree(good, work)
            failed += not check(name, arrange, work)
            shutil.rmtree(work)
    print(f"\n{len(wanted) - failed} of {len(wanted)} ended with status 2, one message and nothing half-written")
    return int(failed > 0)


def prepare(good: Path) -> None:
    """A folder with a recipe, its texts and caches, a finished run, what is exported of it, and another tokenizer."""
    (good / "texts").mkdir(parents=True)
    for i in range(20):
        choose = random.Random(i)
        lines = (" ".join(choose.choices(WORDS, k=5)) + f" = {choose.randrange(99)}\n" for _ in range(20))
        (good / "texts" / f"{i}.txt").write_text("".join(lines))
    (good / "recipe.py").write_text(RECIPE)
    for argv in (
        ["train", "recipe.py", "--output", "run"],
        ["train", "recipe.py", *LORA],
        ["tokenizer", "--out", "other.model", "--sources", "text:texts", "--vocab-size", "310"],
        ["export", "run", "hf"],
        ["export", "run", "good.gguf"],
    ):
        ran = jaxllm(argv, good)
        if ran.returncode != 0:
            raise SystemExit(f"jaxllm {' '.join(argv)} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")


def jaxllm(argv: Sequence[str], work: Path) -> subprocess.CompletedProcess[str]:
    """`jaxllm ARGV` on 8 devices; words that begin with `mount` are a script that runs it under mounts of its own."""
    script, words = (argv[:1], argv[1:]) if argv[0].startswith("mount ") else ([], argv)
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", *script, "sh"] if script else []
    environment = {
        **os.environ,
        "JAXLLM_CACHE": str(work / "cache"),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8" if "mesh" in " ".join(words) else "",
    }
    return subprocess.run(
        [*own_mounts, *PROGRAM, *words], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )


def check(name: str, arrange: Callable[[], Sequence[str]], work: Path) -> bool:
    """Runs a case, prints its row and says whether all was as it must be."""
    os.chdir(work)
    open_before = set(os.listdir("/proc/self/fd"))
    argv = arrange()
    if argv[0].startswith("mount ") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        print(f"| {name} | | left out: `unshare` is not allowed here |")
        return True
    before = contents(work)
    ran = jaxllm(argv, work)
    for descriptor in set(os.listdir("/proc/self/fd")) - open_before:
        if os.path.exists(f"/proc/self/fd/{descriptor}"):
            os.close(int(descriptor))
    after = contents(work)
    os.chdir(work.parent)

    message = ran.stderr.replace(f"{work}/", "").strip()
    words = " ".join(argv[1:] if argv[0].startswith("mount ") else argv)
    print(f"| {name} | `{words:.70}` | {message.replace(chr(10), '<br>').replace('|', '/')} |", flush=True)
    faults = []
    if ran.returncode != 2:
        faults.append(f"status {ran.returncode}")
    if "Traceback" in ran.stdout + ran.stderr or not message:
        faults.append("a traceback, or no message")
    if changed := [path for path in before if after.get(path) != before[path]]:
        faults.append(f"changed {changed[:3]}")
    if new := [path for path in after.keys() - before.keys() if name not in KEEPS_A_RUN or "writing" in path]:
        faults.append(f"left {sorted(new)[:3]}")
    for fault in faults:
        print(f"^^^ {name}: {fault}")
    return not faults


def contents(work: Path) -> dict[str, str]:
    """A hash of every file, but for what the caches and the log of a run may gain: whole folders, locks and lines."""
    found = {}
    for path in work.rglob("*"):
        name = path.relative_to(work).as_posix()
        whole_cache = name.startswith("cache/") and ".building/" not in name
        if path.is_file() and not whole_cache and path.name != "log.txt":
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


if __name__ == "__main__":
    raise SystemExit(main())
