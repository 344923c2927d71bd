import json
import weakref

import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.interop.gguf import header
from jaxllm.interop.gguf.read import open_gguf
from jaxllm.interop.gguf.write import write_gguf
from tests.interop.gguf.models import BY_MODEL_TYPE, CONFIGS, config_of, files_of, sources, tensors_of, write


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_every_family_comes_back_as_it_was(tmp_path, model_type, dtype):
    weights = write(tmp_path / "m.gguf", model_type, dtype)
    model = open_gguf(tmp_path / "m.gguf")
    assert model.tensors.keys() == weights.keys()
    for name, array in weights.items():
        read = model.read(name)
        assert (read.shape, read.dtype) == (model.tensors[name].shape, model.tensors[name].dtype)
        np.testing.assert_array_equal(read.astype(np.float32), array, err_msg=name)
        assert read.flags.owndata
        assert read.flags.c_contiguous


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_config_comes_back_as_it_was(tmp_path, model_type):
    write(tmp_path / "m.gguf", model_type)
    config = config_of(model_type)
    read = open_gguf(tmp_path / "m.gguf").config
    assert {key: read.get(key) for key in config} == config
    assert read["architectures"] == [BY_MODEL_TYPE[model_type].model_class]
    assert read["bos_token_id"] == read["eos_token_id"] == 0


def test_matrices_are_written_as_asked_and_vectors_and_routers_in_float32(tmp_path):
    write(tmp_path / "m.gguf", "mixtral", "q8_0")
    stored = {name: tensor.kind for name, tensor in header.read_header(tmp_path / "m.gguf").tensors.items()}
    assert {kind for name, kind in stored.items() if "norm" in name or "ffn_gate_inp" in name} == {"F32"}
    assert {kind for name, kind in stored.items() if "norm" not in name and "ffn_gate_inp" not in name} == {"Q8_0"}


def test_the_rounding_of_q8_0_is_at_most_half_a_step_and_that_of_its_float16_scale(tmp_path):
    weights = write(tmp_path / "m.gguf", "llama", "q8_0")
    model = open_gguf(tmp_path / "m.gguf")
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        blocks = weights[name].reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(model.read(name).reshape(-1, 32) - blocks) <= (0.5 + 127 / 2**11) * step)


def test_rows_that_are_no_blocks_of_q8_0_are_written_in_float16(tmp_path):
    write(tmp_path / "m.gguf", "qwen3", "q8_0", head_dim=20)
    assert open_gguf(tmp_path / "m.gguf").tensors["model.layers.0.self_attn.o_proj.weight"].stored == "F16"


def test_one_tensor_is_held_at_a_time(tmp_path):
    config, given = config_of("llama"), []

    def read(name: str) -> np.ndarray:
        assert not any(array() is not None for array in given)
        array = weights[name].copy()
        given.append(weakref.ref(array))
        return array

    weights = tensors_of(config)
    watched = [(name, tensor, lambda name=name: read(name)) for name, tensor, _ in sources(weights)]
    write_gguf(tmp_path / "m.gguf", config, watched, files_of(), "f16")
    assert open_gguf(tmp_path / "m.gguf").tensors.keys() == weights.keys()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write(tmp_path / "m.gguf", "llama")
    before = (tmp_path / "m.gguf").read_bytes()
    config = config_of("llama")
    tensors = sources(tensors_of(config, seed=1))

    def fail() -> np.ndarray:
        raise error

    tensors[5] = (*tensors[5][:2], fail)
    with pytest.raises(UserError if isinstance(error, OSError) else error):
        write_gguf(tmp_path / "m.gguf", config, tensors, files_of(), "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_a_folder_that_is_not_there_is_told_of(tmp_path):
    with pytest.raises(UserError, match=r"cannot write '.*/none/m\.gguf': No such file"):
        write(tmp_path / "none" / "m.gguf")


def test_a_tied_head_that_llama_cpp_wants_is_written_twice(tmp_path):
    weights = write(tmp_path / "m.gguf", "olmo2", tie_word_embeddings=True)
    model = open_gguf(tmp_path / "m.gguf")
    np.testing.assert_array_equal(model.read("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert not model.config["tie_word_embeddings"]


def test_buffers_and_a_tied_head_are_left_out(tmp_path):
    config = config_of("gpt2")
    weights = tensors_of(config)
    extra = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8)), "lm_head.weight": weights["transformer.wte.weight"]}
    write_gguf(tmp_path / "m.gguf", config, sources(weights | extra), files_of(), "f32")
    assert open_gguf(tmp_path / "m.gguf").tensors.keys() == weights.keys()


def test_names_without_the_models_prefix_are_understood(tmp_path):
    config = config_of("gpt2")
    weights = tensors_of(config)
    bare = {name.removeprefix("transformer."): array for name, array in weights.items()}
    write_gguf(tmp_path / "m.gguf", config, sources(bare), files_of(), "f32")
    assert open_gguf(tmp_path / "m.gguf").tensors.keys() == weights.keys()


QKV = "gpt_neox.layers.0.attention.query_key_value.weight"


def without(weights, name):
    del weights[name]


@pytest.mark.parametrize(
    ("model_type", "change", "told"),
    [
        ("llama", lambda w: without(w, "model.norm.weight"), r"has no tensor 'model\.norm\.weight'"),
        ("mixtral", lambda w: without(w, "model.layers.1.block_sparse_moe.experts.2.w3.weight"), r"experts\.2\.w3"),
        ("llama", lambda w: w.update(extra=np.ones(3)), r"'extra' has no place in a GGUF file of 'llama'"),
        (
            "llama",
            lambda w: w.update({"model.embed_tokens.weight": np.ones((9, 64))}),
            r"9 rows, and vocab_size is 320",
        ),
        ("gpt_neox", lambda w: w.update({QKV: np.ones((64, 64))}), r"64 rows; the model's heads need a multiple of 12"),
        ("llama", lambda w: w["lm_head.weight"].fill(1e5), r"'lm_head\.weight' has values past float16's 65,504"),
    ],
)
def test_weights_that_do_not_fit_are_told_of(tmp_path, model_type, change, told):
    config = config_of(model_type)
    weights = tensors_of(config)
    change(weights)
    with pytest.raises(UserError, match=told):
        write_gguf(tmp_path / "m.gguf", config, sources(weights), files_of(), "f16")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    for call in (lambda: write(tmp_path / "m.gguf"), lambda: open_gguf(tmp_path / "m.gguf")):
        with pytest.raises(UserError, match=r"GGUF needs the package gguf: pip install 'jaxllm\[interop\]'"):
            call()


def test_the_reference_reader_reads_what_is_written(tmp_path):
    import gguf

    weights = write(tmp_path / "m.gguf", "llama", "f16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(found["output.weight"].data, weights["lm_head.weight"].astype(np.float16))
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "m"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert values["llama.attention.head_count_kv"] == 2
    assert json.loads(files_of()["tokenizer.json"])["model"]["vocab"].keys() <= set(values["tokenizer.ggml.tokens"])
