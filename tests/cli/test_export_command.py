import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm.cli.export_model import run
from jaxllm.cli.main import main
from jaxllm.common.trees import flatten
from jaxllm.config import ObjectiveConfig, RunConfig, TokenizerConfig, TransformerConfig, UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.interop.gguf.read import open_gguf
from jaxllm.interop.huggingface import open_folder
from jaxllm.train.params import load_run_params
from tests.cli.test_generate_command import (
    FITTING,
    MODEL,
    folder,  # noqa: F401  a run of ours, with a SentencePiece tokenizer
    saved,
)
from tests.generation.conftest import TEXT
from tests.interop.folders import decoder


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    assert main(["import", str(decoder(root / "qwen3", "qwen3")), str(root / "ours")]) == 0
    return root / "ours"


def test_a_gguf_file_holds_the_same_model(imported, tmp_path, capsys):
    assert run([str(imported), str(tmp_path / "model.gguf")]) == 0
    assert "exported qwen3" in (out := capsys.readouterr().out)
    assert "as float16 to" in out
    one, other = open_folder(imported.with_name("qwen3")), open_gguf(tmp_path / "model.gguf")
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)
    assert other.files["chat_template.jinja"] == one.files["chat_template.jinja"]


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.0), ("q8_0", 1e-3)])
def test_a_gguf_file_is_written_in_the_type_that_is_asked_for(imported, tmp_path, capsys, dtype, least):
    assert run([str(imported), str(tmp_path / "model.gguf"), "--dtype", dtype]) == 0
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = load_file(imported.with_name("qwen3") / "model.safetensors")[name]
    error = np.abs(open_gguf(tmp_path / "model.gguf").read(name) - wanted).max() / np.abs(wanted).max()
    assert least <= error <= 1 / 127


def test_types_are_told_by_the_library_too(imported, tmp_path, capsys):
    assert run([str(imported), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {tensor.stored for tensor in open_folder(tmp_path / "half").tensors.values()} == {"BF16"}


def test_a_run_of_ours_is_a_llama_with_its_own_tokenizer(folder, tmp_path, capsys):  # noqa: F811
    assert run([str(folder), str(tmp_path / "hf"), "--step", "1"]) == 0
    model = open_folder(tmp_path / "hf")
    assert model.config["model_type"] == "llama"
    assert (model.config["bos_token_id"], model.config["eos_token_id"]) == (1, 2)
    assert {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"} <= model.files.keys()
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    (config, params, _), (other_config, others, _) = load_run_params(folder, 1), load_run_params(tmp_path / "back")
    assert config.model == replace(other_config.model, init_std=config.model.init_std)
    assert other_config.tokenizer.begins_prompts
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(others)[path], err_msg=path)
    one, other = load_tokenizer(folder / "tokenizer.model"), load_tokenizer(tmp_path / "back" / "tokenizer.json")
    assert one.encode("the quick 😀") == other.encode("the quick 😀")


def test_the_decoder_of_a_run_starts_from_the_padding_that_it_was_trained_with(tmp_path):
    model = TransformerConfig(
        **{field: getattr(MODEL, field) for field in ("vocab_size", "width", "layers", "heads", "head_dim", "ffn")},
        kv_heads=MODEL.heads,
        architecture="encoder_decoder",
        mlp="relu",
        positions="relative",
        attention_scale=1.0,
    )
    train_tokenizer([TEXT * 20], TokenizerConfig(vocab_size=300), tmp_path / "t.model")
    config = RunConfig(model=model, objective=ObjectiveConfig(kind="infilling"), **FITTING)
    run([str(saved(tmp_path / "run", config, tmp_path / "t.model", {})), str(tmp_path / "hf")])
    written, pad = open_folder(tmp_path / "hf").config, load_tokenizer(tmp_path / "t.model").pad_id
    assert (written["model_type"], written["decoder_start_token_id"], written["pad_token_id"]) == ("t5", pad, pad)


def test_another_family_is_written_where_it_says_the_same(imported, tmp_path, capsys):
    with pytest.raises(UserError, match=r"^llama cannot express this model: it has no way to say qk_norm"):
        run([str(imported), str(tmp_path / "hf"), "--family", "llama"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_changed_is_described_anew(imported, tmp_path, capsys):
    """Its configuration is then not what its publishers said."""
    shutil.copytree(imported, tmp_path / "changed")
    config = json.loads((tmp_path / "changed" / "config.json").read_text())
    config["model"]["rope_theta"] = 1234.0
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config))
    assert run([str(tmp_path / "changed"), str(tmp_path / "hf")]) == 0
    written = open_folder(tmp_path / "hf").config
    theta = written.get("rope_theta") or written["rope_parameters"]["rope_theta"]
    assert (written["model_type"], theta) == ("qwen3", 1234.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["x.gguf", "--dtype", "bfloat16"], "--dtype bfloat16: GGUF files are written in float32, float16 or q8_0"),
        (["x", "--dtype", "q8_0"], r"--dtype q8_0: is for GGUF; name a file that ends in \.gguf, and not '.*x'"),
        (["x", "--family", "opt"], "--family opt: is not known; there are llama"),
        (["x", "--step", "7"], "there is no checkpoint of step 7 in"),
    ],
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(imported, tmp_path, options, complaint):
    name, *rest = options
    with pytest.raises(UserError, match=complaint):
        run([str(imported), str(tmp_path / name), *rest])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(imported, tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    for out in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(UserError, match="is there already"):
            run([str(imported), str(out)])
    assert (tmp_path / "model.gguf").read_text() == "mine"
