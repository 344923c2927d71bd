"""Evaluation of the model of `test_chat_command`, which always says " fox 🦊", and of one with random parameters."""

import itertools
import json
import shutil
import signal

import jax
import pytest

from jaxllm.cli.eval import run
from jaxllm.cli.main import main
from jaxllm.config import UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.evaluation import answers
from jaxllm.evaluation.likelihood import Request, Scorer, encode_pair
from jaxllm.evaluation.model import open_model
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import initial
from tests.cli.test_chat_command import compiled_once, folder  # noqa: F401  fixtures
from tests.cli.test_generate_command import MODEL
from tests.cli.test_generate_command import folder as random_folder  # noqa: F401  a fixture

ROWS = [
    {"task": "animals", "prompt": "Which?", "completion": "Fox 🦊!"},
    {"task": "animals", "prompt": "Which?", "references": ["a dog", "the fox"]},
    {"task": "others", "prompt": [{"role": "user", "content": "Who?"}], "answer": "nobody"},
    {"task": "choices", "prompt": "Which?", "choices": ["the dog", " fox 🦊"], "answer": 1},
    {"task": "choices", "prompt": "Which?", "choices": [" fox 🦊", "the dog"], "answer": "the dog"},
]


@pytest.fixture(autouse=True)
def scored_by_one(monkeypatch, programs={}):  # noqa: B006  shared on purpose
    """Scorers of one model share their programs."""

    def sharing(scorer, config, *args, init=Scorer.__init__):
        init(scorer, config, *args)
        own = {name: getattr(scorer, name) for name in ("_read", "_read_contexts", "_go_on", "_head")}
        scorer.__dict__.update(programs.setdefault((config, *args[1:]), own))

    monkeypatch.setattr(Scorer, "__init__", sharing)


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "rows.jsonl"


def evaluated(*argv):
    """The means of each task by metric, and the rows, of what is written."""
    assert run([*map(str, argv), "--max-new-tokens", "12"]) == 0
    out = next(arg for before, arg in itertools.pairwise(argv) if before == "--out")
    tasks = json.loads(out.read_text())["tasks"]
    kept = out.with_name(out.name.replace(".json", ".rows.jsonl"))
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()[1:]]
    return {task: {m: mean["mean"] for m, mean in own.items()} for task, own in tasks.items()}, lines


def test_answers_and_choices_are_measured_by_task(folder, rows, tmp_path, capsys):  # noqa: F811
    tasks, lines = evaluated(folder, rows, "--out", tmp_path / "r.json")
    assert tasks["animals"] == {"exact": 0.5, "f1": pytest.approx(5 / 6), "rougeL": pytest.approx(5 / 6)}
    assert tasks["others"] == {"exact": 0, "f1": 0, "rougeL": 0}
    assert tasks["choices"] == {"acc": 0.5, "acc_norm": 0.5}
    by_row = {line["row"]: line for line in lines}
    assert [by_row[f"rows.jsonl:{n}"]["answer"] for n in (1, 2, 3)] == [" fox 🦊"] * 3
    chosen = by_row["rows.jsonl:4"]["answer"]
    assert chosen[1] > chosen[0] + 5
    assert by_row["rows.jsonl:5"]["answer"] == pytest.approx(chosen[::-1], abs=1e-4)
    out, err = capsys.readouterr()
    assert "mean over tasks" in out
    assert "writing: 3 rows" in err
    assert "choosing: 2 rows" in err


def test_metrics_that_are_asked_for_decide_how_rows_are_answered(folder, rows, tmp_path):  # noqa: F811
    tasks, lines = evaluated(folder, rows, "--metrics", "exact", "acc_pmi", "--out", tmp_path / "r.json")
    assert tasks["choices"] == {"acc_pmi": 0.5, "exact": 0.5}
    assert sorted(line["way"] for line in lines) == ["choice"] * 2 + ["text"] * 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_goes_on(folder, rows, tmp_path, capsys, monkeypatch, number):  # noqa: F811
    argv = [folder, rows, "--batch", "2", "--max-new-tokens", "12", "--out", tmp_path / "r.json"]
    written = answers.write

    def interrupted(*args):
        yield next(written(*args))
        signal.raise_signal(number)

    monkeypatch.setattr(answers, "write", interrupted)
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    assert main(["eval", *map(str, argv)]) == 128 + number
    signal.signal(number, before)
    err = capsys.readouterr().err
    assert f"[4 of 5 answers are in '{tmp_path / 'r.rows.jsonl'}'; the same command goes on]" in err
    assert not (tmp_path / "r.json").exists()
    asked = []
    monkeypatch.setattr(answers, "write", lambda *args: asked.extend(args[2]) or written(*args))
    tasks, _ = evaluated(*argv)
    assert f"[4 of 5 answers are in '{tmp_path / 'r.rows.jsonl'}' already]" in capsys.readouterr().err
    assert len(asked) == 1
    whole, _ = evaluated(*argv[:-1], tmp_path / "whole.json")
    assert tasks == whole
    with pytest.raises(UserError, match=r"r\.rows\.jsonl' is of another model, other options or other rows"):
        evaluated(*argv, "--system", "Be brief.")
    evaluated(*argv, "--batch", "3")  # which changes nothing


def test_results_are_compared_with_earlier_ones(folder, rows, tmp_path, capsys):  # noqa: F811
    evaluated(folder, rows, "--out", tmp_path / "before.json")
    rows.write_text(rows.read_text().replace('"answer": "nobody"', '"answer": "a fox 🦊"'))
    capsys.readouterr()
    evaluated(folder, rows, "--out", tmp_path / "after.json", "--compare", tmp_path / "before.json")
    printed, told = capsys.readouterr()
    line = next(each for each in printed.splitlines() if "others" in each and "exact" in each)
    assert [cell.strip() for cell in line.strip("│").split("│")[1:]] == ["exact", "0.0000", "1.0000", "+1.0000"]
    assert "not alike" not in told
    evaluated(folder, rows, "--limit", "1", "--out", tmp_path / "one.json", "--compare", tmp_path / "before.json")
    assert f"[not alike are '{tmp_path / 'before.json'}' and this: limit: None, 1]" in capsys.readouterr().err


def test_plain_text_goes_on_with_the_prompt_and_examples_part_paragraphs(random_folder, rows, tmp_path):  # noqa: F811
    """By the likelihoods of the library, for the parameters that the run has drawn."""
    rows.write_text("".join(json.dumps({**ROWS[3], "prompt": f"the {word}"}) + "\n" for word in ("dog", "fox", "the")))
    tokenizer = load_tokenizer(random_folder / "tokenizer.model")
    scorer = Scorer(MODEL, initial(jax.random.key(2), parameter_table(MODEL)))

    def expected(text):
        before, ids = encode_pair(tokenizer.encode, text, " the dog")
        return scorer.score([Request([tokenizer.bos_id, *before], ids)])[0].log_prob

    _, lines = evaluated(random_folder, rows, "--no-ema", "--out", tmp_path / "r.json")
    by_row = {line["row"]: line["answer"][0] for line in lines}
    assert by_row["rows.jsonl:2"] == pytest.approx(expected("the fox"), abs=1e-4)
    _, lines = evaluated(random_folder, rows, "--no-ema", "--few-shot", 1, "--limit", 1, "--out", tmp_path / "s.json")
    possible = [expected(f"the {word} fox 🦊\n\nthe dog") for word in ("fox", "the")]
    assert [len(lines), min(abs(lines[0]["answer"][0] - value) for value in possible) < 1e-4] == [1, True]


def test_a_text_is_measured_by_its_likelihood(random_folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 9)
    argv = [str(random_folder), "--text", str(tmp_path / "t.txt"), "--out", str(tmp_path / "r.json")]
    assert run([*argv, "--window", "32", "--stride", "16"]) == 0
    means = json.loads((tmp_path / "r.json").read_text())["tasks"][str(tmp_path / "t.txt")]
    assert means.keys() == {"loss", "perplexity", "bits_per_byte"}
    out = capsys.readouterr().out
    assert f"{means['loss']['mean']:.4f}" in out
    assert out.splitlines()[1].split()[1:5] == ["task", "┃", "tokens", "┃"]


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], r"give one of FILE\.\.\., --held-out, --text and --harness; got none"),
        (
            ["{rows}", "--text", "t.txt"],
            r"give one of FILE\.\.\., --held-out, --text and --harness; got FILE and --text",
        ),
        (["{rows}", "--window", "8"], "--window: has no meaning with FILE, but with --text"),
        (
            ["--text", "{rows}", "--few-shot", "1"],
            "--few-shot: has no meaning with --text, but with FILE or --held-out or --harness",
        ),
        (["--harness", ","], "--harness: name at least one task"),
        (["{rows}", "--limit", "0"], "--limit: expected 1 or more, got 0"),
        (["{rows}", "--few-shot", "-1"], "--few-shot: expected 0 or more, got -1"),
        (["{rows}", "--few-shot", "2"], "--few-shot 2: task 'animals' has 2 rows, of which one is the question"),
        (["{rows}", "--stop", ""], "--stop: a stop string has at least one character"),
        (["{rows}", "--out", "r.txt"], r"--out r\.txt: expected a name that ends in \.json"),
        (["{rows}", "--tasks", "animal"], "--tasks animal: there is no such task; there are animals, others, choices"),
        (["{rows}", "--metrics", "acc"], r"--metrics acc: rows\.jsonl:1 has no 'choices'; add exact or f1 or rougeL"),
        (["{rows}", "--compare", "{rows}"], r"rows\.jsonl' is not JSON"),
        (["{rows}", "--chat", "True"], "--chat: '.*' has no chat template"),
        (["{rows}", "--step", "7"], "no checkpoint of step 7"),
        (["gone.jsonl"], "no such file or folder"),
        (["--text", "gone.txt"], "no such file or folder"),
    ],
)
def test_what_will_not_do_is_named(random_folder, rows, argv, complaint):  # noqa: F811
    with pytest.raises(UserError, match=complaint):
        run([str(random_folder), *(argument.format(rows=rows) for argument in argv)])


def test_a_folder_that_is_no_run_is_told_first(rows, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        run([str(tmp_path), str(rows)])


def test_the_model_is_known_by_its_content(folder, tmp_path):  # noqa: F811
    shutil.copytree(folder, tmp_path / "elsewhere")
    moved = open_model(str(tmp_path / "elsewhere"))
    assert moved.fingerprint == open_model(str(folder)).fingerprint
    assert moved.fingerprint != open_model(str(folder), chat=False).fingerprint
    (tmp_path / "elsewhere" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert moved.fingerprint != open_model(str(tmp_path / "elsewhere")).fingerprint
