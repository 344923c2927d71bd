"""`--verify` of import and of export."""

import math

import pytest

from jaxllm.cli.main import main
from jaxllm.interop import verify
from jaxllm.interop.verify import Agreement
from tests.interop.folders import decoder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What each command reads."""
    root = tmp_path_factory.mktemp("models")
    published, ours = decoder(root / "qwen3", "qwen3"), root / "ours"
    assert main(["import", str(published), str(ours)]) == 0
    return {"import": published, "export": ours}


@pytest.mark.parametrize("command", ["import", "export"])
@pytest.mark.parametrize(
    ("theirs", "kept", "more", "status"),
    [
        (1e-5, 0.0, [], 0),
        (1.0, 0.0, [], 1),
        (1e-5, 1e-3, [], 1),
        (1e-5, 1e-3, ["--dtype", "float16"], 0),
        (1e-5, math.nan, ["--dtype", "float16"], 1),
    ],
)
def test_it_prints_how_far_logits_are_apart(
    sources, tmp_path, monkeypatch, capsys, command, theirs, kept, more, status
):
    found = verify.Verified(Agreement(theirs, 1.0, 1.0), Agreement(kept, 1.0, 1.0))
    monkeypatch.setattr(verify, "verify", lambda path, config, params: found)
    assert main([command, str(sources[command]), str(tmp_path / "out"), "--verify", *more]) == status
    out = capsys.readouterr().out
    assert f"logits of ours and of transformers differ by at most {theirs:.2e}" in out
    assert f"logits of the model folder and of the published files differ by at most {kept:.2e}" in out
