import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.config import UserError
from jaxllm.interop import huggingface
from jaxllm.interop.huggingface import INDEX, SINGLE, open_folder, write_folder
from jaxllm.interop.published import Tensor

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
random = np.random.default_rng(0)
ARRAYS = {
    "a.weight": random.normal(size=(3, 4)).astype(np.float32),
    "b.weight": random.normal(size=(5, 2)).astype(ml_dtypes.bfloat16),
    "c.bias": random.normal(size=(7,)).astype(np.float16),
}
CONFIG = {"model_type": "llama", "hidden_size": 8}


def entries(arrays: dict[str, np.ndarray] = ARRAYS) -> list:
    return [(n, Tensor(x.shape, x.dtype.name, STORED[x.dtype.name]), lambda x=x: x) for n, x in arrays.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is whole."""
    write_folder(tmp_path / "model", CONFIG, entries(), {"tokenizer.json": b"{}", "vocab.txt": b"a\n"})
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in three files."""
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 30)
    write_folder(tmp_path / "shards", CONFIG, entries(), {})
    return tmp_path / "shards"


def test_a_folder_is_read_as_it_was_written(folder):
    model = open_folder(folder)
    assert model.config == CONFIG
    assert model.files == {"tokenizer.json": b"{}", "vocab.txt": b"a\n"}
    assert model.tensors == {name: tensor for name, tensor, _ in entries()}
    for name, array in ARRAYS.items():
        read = model.read(name)
        assert (read.dtype, read.tobytes()) == (array.dtype, array.tobytes())


def test_further_chat_templates_are_files_of_the_model(folder, tmp_path):
    files = {**open_folder(folder).files, "additional_chat_templates/tool_use.jinja": b"{{ tools }}"}
    write_folder(tmp_path / "other", CONFIG, entries(), files)
    (tmp_path / "other" / "additional_chat_templates" / "notes.txt").write_text("none")
    assert open_folder(tmp_path / "other").files == files


def test_the_library_reads_what_is_written_in_one_file_or_several(folder, shards):
    there = load_file(folder / SINGLE)
    assert there.keys() == ARRAYS.keys()
    index = json.loads((shards / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in ARRAYS.values())
    assert len(set(index["weight_map"].values())) == 3
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(there[name], array)
        np.testing.assert_array_equal(load_file(shards / index["weight_map"][name])[name], array)
    assert open_folder(shards).tensors == open_folder(folder).tensors


def test_what_the_library_writes_is_read(tmp_path):
    save_file({**ARRAYS, "position_ids": np.arange(4)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text("{}")
    model = open_folder(tmp_path)
    assert model.tensors.keys() == ARRAYS.keys(), "integers are no parameters"
    np.testing.assert_array_equal(model.read("b.weight"), ARRAYS["b.weight"])


def truncated(content: bytes) -> bytes:
    return content[:-10]


def with_a_header_of(length: int):
    return lambda content: length.to_bytes(8, "little") + content[8:]


@pytest.mark.parametrize(
    "spoil",
    [truncated, with_a_header_of(2**60), with_a_header_of(3), lambda content: b"", lambda content: content[:200]],
    ids=["truncated", "2^60 bytes of header", "3 bytes of header", "empty", "header alone"],
)
def test_a_damaged_file_is_refused_by_its_name(folder, spoil):
    path = folder / SINGLE
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors' is damaged or is not of the format .*; fetch it again"):
        open_folder(folder)


def test_a_type_that_is_not_known_is_refused_by_the_tensors_name(folder):
    save_file({"a.weight": np.zeros(3)}, folder / SINGLE)
    with pytest.raises(UserError, match=r"'a\.weight' has the type F64: one of F32, F16, BF16 would do"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", r"config\.json' is not JSON"), ("[]", r"config\.json': expected an object, got \[\]")],
)
def test_a_config_that_is_none_is_refused(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_folder(folder)


def test_a_folder_without_a_config_or_weights_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match=r"cannot read .*nowhere/config\.json': No such file"):
        open_folder(tmp_path / "nowhere")
    (folder / SINGLE).unlink()
    with pytest.raises(UserError, match="has no weights: neither model"):
        open_folder(folder)


def test_pickles_are_refused_unopened(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin' is a pickle, which may run any program"):
        open_folder(folder)


def indexed(folder: Path, **files: str) -> Path:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {name.replace("_", "."): file for name, file in files.items()}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_an_index_must_name_the_file_of_each_tensor(shards):
    with pytest.raises(UserError, match=r"says that 'model-00001-of-00003\.safetensors' holds 'b\.weight', and"):
        open_folder(indexed(shards, b_weight="model-00001-of-00003.safetensors"))
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'):
        (shards / INDEX).write_text(content)
        with pytest.raises(UserError, match="'weight_map' must give the file of each tensor"):
            open_folder(shards)


@pytest.mark.parametrize("file", ["../model/model.safetensors", "/x.safetensors", "sub/x.safetensors", "x.bin", ".."])
def test_an_index_may_not_name_files_elsewhere(shards, folder, file):
    with pytest.raises(UserError, match=r"names the file .*: must be a \.safetensors file of the same folder"):
        open_folder(indexed(shards, a_weight=file))


def test_a_shard_that_was_not_fetched_is_named(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"'model-00002-of-00003\.safetensors', which is not there: fetch the rest"):
        open_folder(shards)


def test_an_interrupted_export_leaves_nothing(tmp_path):
    def fail() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", CONFIG, [*entries(), ("z", Tensor((1,), "float32", "F32"), fail)], {})
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_refused_and_an_empty_one_is_not(tmp_path, folder):
    before = (folder / SINGLE).read_bytes()
    with pytest.raises(UserError, match="model' is there already: name another folder, or remove it"):
        write_folder(folder, {}, entries(), {})
    assert (folder / SINGLE).read_bytes() == before
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", CONFIG, entries(), {})
    assert open_folder(tmp_path / "empty").config == CONFIG
