import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.cli.import_model import run
from jaxllm.cli.main import main
from jaxllm.common.trees import flatten
from jaxllm.config import UserError
from jaxllm.interop.huggingface import open_folder
from jaxllm.train.params import load_run_params
from jaxllm.train.run_folder import saved_config
from tests.interop.folders import decoder, encoder
from tests.interop.gguf.models import files_of, write


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return decoder(tmp_path_factory.mktemp("published") / "llama")


@pytest.fixture(scope="module")
def imported(published):
    out = published.with_name("ours")
    assert run([str(published), str(out)]) == 0
    return out


def test_it_says_what_lies_in_the_folder(published, tmp_path, capsys):
    assert run([str(published), str(tmp_path / "ours")]) == 0
    counted = sum(x.size for x in load_file(published / "model.safetensors").values())
    out = capsys.readouterr().out
    assert out.startswith(f"imported llama with {counted:,} parameters from 21 tensors as float32, 0 MiB, to '")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_all_that_came_with_the_weights_is_kept(published, imported):
    assert (
        open_folder(published).files.items()
        == {name: (imported / name).read_bytes() for name in open_folder(published).files}.items()
    )
    assert json.loads((imported / "source.json").read_text()) == json.loads((published / "config.json").read_text())


def test_what_is_exported_again_has_the_same_bytes(published, imported, tmp_path, capsys):
    assert main(["export", str(imported), str(tmp_path / "back")]) == 0
    assert "exported llama with" in capsys.readouterr().out
    one, other = (load_file(folder / "model.safetensors") for folder in (published, tmp_path / "back"))
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert open_folder(tmp_path / "back").files == open_folder(published).files


def test_a_gguf_file_gives_the_parameters_of_its_folder(published, imported, tmp_path, capsys):
    """The tensors of both are drawn alike, and float32 in both."""
    write(tmp_path / "llama.gguf")
    assert main(["import", str(tmp_path / "llama.gguf"), str(tmp_path / "ours")]) == 0
    (config, params, _), (other_config, others, _) = map(load_run_params, (imported, tmp_path / "ours"))
    assert config.model == other_config.model
    for path, leaf in flatten(others).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path], err_msg=path)


def test_a_head_that_is_lost_is_told(tmp_path, capsys):
    folder, head = encoder(tmp_path / "bert"), "cls.seq_relationship.weight"
    path = folder / "model.safetensors"
    save_file({**load_file(path), head: np.zeros((2, 32), np.float32)}, path)
    assert run([str(folder), str(tmp_path / "ours")]) == 0
    assert f"left out, since no model here has such a head: {head}\n" in capsys.readouterr().out


def test_the_type_is_the_one_that_is_asked_for(published, tmp_path, capsys):
    run([str(published), str(tmp_path / "ours"), "--dtype", "bfloat16"])
    _, params, _ = load_run_params(tmp_path / "ours")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    assert "as bfloat16" in capsys.readouterr().out


def test_it_is_converted_on_a_mesh(published, imported, tmp_path, capsys):
    run([str(published), str(tmp_path / "ours"), "--mesh.fsdp", "4", "--mesh.data", "1"])
    for path, leaf in flatten(load_run_params(tmp_path / "ours")[1]).items():
        np.testing.assert_array_equal(leaf, flatten(load_run_params(imported)[1])[path], err_msg=path)
    with pytest.raises(UserError, match="--mesh: asks for 16 devices, and there are 8"):
        run([str(published), str(tmp_path / "other"), "--mesh.fsdp", "16"])
    with pytest.raises(UserError, match=r"model\.width = 64: mesh\.fsdp = 5 does not divide it"):
        run([str(published), str(tmp_path / "other"), "--mesh.fsdp", "5"])


def test_it_is_a_run_that_could_be_trained(imported):
    config = saved_config(imported)
    assert (config.name, config.objective.kind, config.data.sequence_length) == ("ours", "causal", 32)
    assert config.tokenizer.path == str(imported / "tokenizer.json")


def test_a_prompt_begins_as_the_tokenizer_says(published, imported, tmp_path, capsys):
    """With and without the begin-of-document token the model goes on otherwise."""
    shutil.copytree(published, tmp_path / "begins")
    for name, content in files_of(add_bos_token=True).items():
        (tmp_path / "begins" / name).write_bytes(content)
    assert run([str(tmp_path / "begins"), str(tmp_path / "ours")]) == 0
    assert saved_config(tmp_path / "ours").tokenizer.begins_prompts
    assert not saved_config(imported).tokenizer.begins_prompts
    said = {}
    for folder in (imported, tmp_path / "ours"):
        assert main(["generate", str(folder), "for name", "--max-new-tokens", "8", "--temperature", "0"]) == 0
        said[folder] = capsys.readouterr()
    assert said[imported].out != said[tmp_path / "ours"].out


def test_a_model_without_a_tokenizer_leaves_nothing(published, tmp_path):
    shutil.copytree(published, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"'.*bare' has no tokenizer: neither tokenizer\.json, tokenizer\.model"):
        run([str(tmp_path / "bare"), str(tmp_path / "ours")])
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_folder_that_holds_something_is_left_alone(published, imported):
    before = sorted(imported.rglob("*"))
    with pytest.raises(UserError, match="is there already: name another folder, or remove it"):
        run([str(published), str(imported)])
    assert sorted(imported.rglob("*")) == before


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no '.*nowhere': name a Hugging Face folder or a GGUF file"):
        run([str(tmp_path / "nowhere"), str(tmp_path / "ours")])
