import io
import json
import shutil
import sys

import numpy as np
import pytest

from jaxllm.cli.embed import run
from jaxllm.cli.main import main
from jaxllm.config import UserError
from tests.cli.test_generate_command import folder  # noqa: F401  a decoder
from tests.interop.folders import encoder

LINES = ["the name of a print", "names", "", "printing the names of a printing of names of the name"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    assert main(["import", str(encoder(root / "bert")), str(root / "ours")]) == 0
    return root / "ours"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in LINES))
    return tmp_path / "lines.txt"


def test_each_line_is_an_object_of_the_output(model, text, capsys):
    assert run([str(model), str(text)]) == 0
    out, err = capsys.readouterr()
    objects = [json.loads(line) for line in out.splitlines()]
    assert [o["text"] for o in objects] == LINES
    assert {len(o["embedding"]) for o in objects} == {32}
    assert "4 lines in" in err


def test_files_of_both_kinds_hold_the_same(model, text, tmp_path, capsys):
    assert run([str(model), str(text), "--out", str(tmp_path / "v.npy")]) == 0
    assert run([str(model), str(text), "--out", str(tmp_path / "v.jsonl")]) == 0
    vectors = np.load(tmp_path / "v.npy")
    assert (vectors.shape, vectors.dtype) == ((4, 32), np.float32)
    objects = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.array([o["embedding"] for o in objects], np.float32), vectors)
    assert capsys.readouterr().out == ""


def embedded(model, text, tmp_path, *options):
    run([str(model), str(text), "--out", str(tmp_path / "v.npy"), *options])
    return np.load(tmp_path / "v.npy")


def test_pooling_is_as_the_files_say_or_as_is_asked_for(model, text, tmp_path):
    own = embedded(model, text, tmp_path)
    np.testing.assert_array_equal(own, embedded(model, text, tmp_path, "--pooling", "first", "--normalise", "False"))
    mean = embedded(model, text, tmp_path, "--pooling", "mean", "--normalise", "True")
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, rtol=1e-6)
    assert np.abs(np.linalg.norm(own, axis=1) - 1).min() > 0.1


def test_weights_are_held_in_the_type_that_is_asked_for(model, text, tmp_path):
    exact, rounded = (embedded(model, text, tmp_path, "--dtype", dtype) for dtype in ("float32", "bfloat16"))
    np.testing.assert_array_equal(exact, embedded(model, text, tmp_path))
    assert 1e-4 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.1


def test_a_line_is_read_up_to_the_most_tokens(model, text, tmp_path):
    """The last line is longer than the 12 tokens of `sentence_bert_config.json`."""
    whole, cut = embedded(model, text, tmp_path, "--max-tokens", "40"), embedded(model, text, tmp_path)
    np.testing.assert_allclose(whole[:3], cut[:3], atol=1e-5)
    assert np.abs(whole[3] - cut[3]).max() > 1e-3


def test_lines_come_from_the_standard_input(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("names\u2028of\nthe"))
    assert run([str(model)]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.split("\n")[:-1]] == ["names\u2028of", "the"]


def test_what_will_not_do_is_told_and_leaves_nothing(model, text, tmp_path, folder):  # noqa: F811
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    shutil.copytree(model, tmp_path / "strange")
    (tmp_path / "strange/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    out = str(tmp_path / "v.npy")
    for argv, complaint in {
        (str(model), str(text), "--out", "v.txt"): r"--out v\.txt: expected a name that ends in \.npy or \.jsonl",
        (str(model), str(tmp_path / "none.txt")): "has no line of text",
        (str(model), str(tmp_path / "latin.txt")): "is not UTF-8 text",
        (str(model), str(tmp_path / "gone.txt")): "cannot read '.*gone.txt': No such file",
        (str(model), str(text), "--max-tokens", "161"): "--pooling.max-tokens 161: expected 3 to 160",
        (str(tmp_path / "strange"), str(text)): r"asks for \['pooling_mode_max_tokens'\]: one of",
        (str(folder), str(text)): "architecture 'decoder' makes no embeddings; an encoder does",
    }.items():
        with pytest.raises(UserError, match=complaint):
            run([*argv, *(() if "--out" in argv else ("--out", out))])
    assert not (tmp_path / "v.npy").exists()
