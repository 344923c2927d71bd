import json
from pathlib import Path

import pytest

from jaxllm.cli.model import run

GPT2 = str(Path(__file__).parents[2] / "configs" / "pretrain" / "gpt2_124m.py")
UNPADDED = [GPT2, "--model.vocab-size", "50257"]


def test_tables_show_parameters_flops_and_memory(capsys):
    assert run(UNPADDED) == 0
    out = capsys.readouterr().out
    assert "124,439,808" in out  # parameters
    assert "797,870,592" in out  # FLOPs a token
    assert "1,991,036,928" in out  # 16 bytes for each parameter
    assert "ema" not in out


def test_json_holds_the_same_numbers(capsys):
    assert run([*UNPADDED, "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["parameters"]["total"] == 124_439_808
    assert costs["parameters"]["layers/mlp/up"] == 12 * (768 * 3072 + 3072)
    assert costs["flops_per_token"] == {"matrices": 741192192, "attention": 56678400, "total": 797870592}
    assert costs["memory_bytes"]["optimizer"] == 2 * costs["memory_bytes"]["parameters"] == 8 * 124_439_808


@pytest.mark.parametrize(("kind", "moments"), [("lion", 1), ("adamw", 2)])
def test_memory_follows_the_optimizer_and_the_moving_average(capsys, kind, moments):
    run([GPT2, "--optimizer.kind", kind, "--train.ema-decay", "0.99", "--json"])
    memory = json.loads(capsys.readouterr().out)["memory_bytes"]
    assert memory["optimizer"] == moments * memory["parameters"]
    assert memory["ema"] == memory["parameters"]
    assert memory["total"] == (3 + moments) * memory["parameters"]
