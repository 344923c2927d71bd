import pytest

from jaxllm.cli.tokenizer import run
from jaxllm.config import UserError
from jaxllm.data.tokenizer import load_tokenizer


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"    def name_{i}(self):\n        return {i} * 'words and words'\n" * 9)
    return tmp_path


def test_it_writes_a_tokenizer_and_reports_what_it_is_worth(corpus, capsys):
    out = corpus / "made.model"
    assert run(["--out", str(out), "--sources", f"text:{corpus}", "--vocab-size", "300"]) == 0
    tokenizer = load_tokenizer(out)
    assert tokenizer.vocab_size == 300
    printed = capsys.readouterr().out
    for figure in ("300", "30 (0 duplicates dropped)", "held-out text", "True", tokenizer.fingerprint):
        assert figure in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "made.json"], r"--out 'made\.json': the name of a SentencePiece model ends in '\.model'"),
        (["--out", "m.model", "--train-megabytes", "inf"], "--train-megabytes inf: must be above 0"),
        (["--out", "m.model", "--validation-fraction", "2"], "--validation-fraction 2.0: must be at least 0 and below"),
        (["--out", "m.model", "--sources", "nowhere.txt"], r"no such file or folder: 'nowhere\.txt'"),
        (
            ["--out", "m.model", "--sources", "text:{}", "--vocab-size", "99999"],
            "is more than this text allows; the most",
        ),
        (
            ["--out", "{}/no/m.model", "--sources", "text:{}", "--vocab-size", "300"],
            "cannot be written: '.*/no' is no folder that can be written in",
        ),
    ],
)
def test_what_will_not_do_is_named_and_nothing_is_written(corpus, monkeypatch, arguments, complaint):
    monkeypatch.chdir(corpus)
    before = sorted(corpus.iterdir())
    with pytest.raises(UserError, match=complaint):
        run([argument.format(corpus) for argument in arguments])
    assert sorted(corpus.iterdir()) == before


def test_an_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["--out", "m.model", "--vocab-sise", "300"])
    assert caught.value.code == 2
    assert "--vocab-size" in capsys.readouterr().err
