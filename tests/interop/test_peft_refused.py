"""What of an adapter of PEFT has no meaning here, does not fit its base, or is damaged: each by one message."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxllm.config import UserError
from jaxllm.interop.convert import plan_import
from jaxllm.interop.peft.folder import read_peft
from jaxllm.interop.peft.settings import is_target
from jaxllm.interop.settings import Settings
from tests.interop.tiny import published

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
ROOT = "base_model.model.model.layers"


def updates(name="self_attn.q_proj", layers=2, inputs=32, outputs=40, rank=2):
    made = {}
    for layer in range(layers):
        made[f"{ROOT}.{layer}.{name}.lora_A.weight"] = np.ones((rank, inputs), np.float32)
        made[f"{ROOT}.{layer}.{name}.lora_B.weight"] = np.ones((outputs, rank), np.float32)
    return made


def read(folder, said, tensors, base="llama"):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    plan = plan_import(published(base))
    return read_peft(folder, plan.family, plan.config, lambda module: pytest.fail("there is no DoRA"))


def test_an_update_that_fits_is_read(tmp_path):
    tuning, leaves = read(tmp_path, LORA, updates())
    assert (tuning.lora.targets, tuning.lora.rank, tuning.lora.alpha) == (("^layers/attention/query$",), 2, 4.0)
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        "layers/attention/query/lora_a": (2, 32, 2),
        "layers/attention/query/lora_b": (2, 2, 4, 10),
    }


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3': one of LORA, ADALORA, PROMPT_TUNING, PREFIX_TUNING would do"),
        ({"peft_type": None}, "'peft_type' is missing"),
        ({"bias": "all"}, "bias = 'all': only 'none' is supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = .*parameters of the base that were trained too"),
        ({"lora_bias": True}, "lora_bias = True: is not supported"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices = "),
        ({"target_parameters": ["experts.up"]}, "target_parameters = "),
        ({"layer_replication": [[0, 1]]}, "layer_replication = "),
        ({"use_something_new": 3}, "use_something_new = 3: is not supported; only what it is when left out would do"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4': .* a base that was changed"),
        ({"r": 0}, "r = 0: must be a whole number from 1"),
        ({"r": "four"}, "r = 'four': must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha = 0: must be a number above 0"),
        ({"rank_pattern": [2]}, "rank_pattern = .*must be an object"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: q_proj = 'x': must be a whole number"),
        ({"rank_pattern": {"q_proj(": 2}}, r"is not a regex"),
        ({"target_modules": "("}, r"'\(' is not a regex"),
        ({"target_modules": {"q": 1}}, "target_modules = .*must be a list of names, or a regex"),
        ({"use_dora": True}, "of 'model.layers.0.self_attn.q_proj' there is lora_A, lora_B beside it, and should be "),
        ({"use_rslora": "yes"}, "use_rslora = 'yes': must be true or false"),
        ({"r": 3}, r"lora_A of 'model.layers.0.self_attn.q_proj' has the shape \[2, 32\]; \[3, 32\] would do"),
        (
            {"target_modules": ["k_proj"]},
            "there is an update of 'model.layers.0.self_attn.q_proj' beside it, which is no",
        ),
        (
            {"layers_to_transform": [0]},
            "there is an update of 'model.layers.1.self_attn.q_proj' beside it, which is no",
        ),
        ({"target_modules": ["q_proj", "up_proj"]}, "there is no update of 'model.layers.0.mlp.up_proj' beside it"),
    ],
)
def test_a_setting_without_a_meaning_here_is_named(changes, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint) as raised:
        read(tmp_path, {**LORA, **changes}, updates())
    assert str(raised.value).startswith(f"'{tmp_path / 'adapter_config.json'}'")


def test_targets_are_found_as_the_library_finds_them():
    def targets(**said):
        found = Settings({**LORA, **said}, "x")
        return [layer for layer in range(12) if is_target(found, f"model.layers.{layer}.self_attn.q_proj")]

    assert targets() == [*range(12)]
    assert targets(target_modules=["model.layers.1.self_attn.q_proj"]) == [1]
    assert targets(target_modules=["proj"]) == []
    assert targets(target_modules=r".*\.1\d?\.self_attn\..*") == [1, 10, 11]
    assert targets(layers_to_transform=[3, 11]) == [3, 11]
    assert targets(layers_to_transform=4, layers_pattern="layers") == [4]
    assert targets(layers_to_transform=[4], layers_pattern=["h"]) == []
    assert targets(exclude_modules=["model.layers.5.self_attn.q_proj"], layers_to_transform=[5, 6]) == [6]
    assert targets(exclude_modules=r".*q_proj") == []


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "there is no update beside it"),
        (
            updates(inputs=48),
            r"for another base.*lora_A of '.*0.self_attn.q_proj' has the shape \[2, 48\]; \[2, 32\] would",
        ),
        (
            updates(outputs=64),
            r"lora_B of '.*0.self_attn.q_proj' has the shape \[64, 2\]; \[40, 2\] would do, of 32 numbers",
        ),
        (updates(layers=3), "another base: it updates 'model.layers.2.self_attn.q_proj', which the model has not"),
        (updates("attn.c_attn"), "it updates 'model.layers.0.attn.c_attn', which the model has not; the nearest"),
        ({f"{ROOT}.0.self_attn.q_proj.bias": np.ones(3, np.float32)}, "'.*q_proj.bias' beside it is no update"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 3), np.float32)},
            "embed_tokens.lora_embedding_A' beside it is no update of a linear map of a block; others",
        ),
        (
            {
                "base_model.model.lm_head.lora_A.weight": np.ones((2, 32), np.float32),
                "base_model.model.lm_head.lora_B.weight": np.ones((61, 2), np.float32),
            },
            "it updates 'lm_head'; only linear maps of blocks can be updated here, and not those of experts",
        ),
    ],
)
def test_tensors_that_are_none_of_the_bases_are_named(tensors, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        read(tmp_path, LORA, tensors)


def test_updates_of_experts_are_named(tmp_path):
    name = "block_sparse_moe.experts.1.w1"
    with pytest.raises(UserError, match=f"it updates 'model.layers.0.{name}'; only linear maps of blocks"):
        read(tmp_path, {**LORA, "target_modules": ["w1"]}, updates(name), base="mixtral")


@pytest.mark.parametrize(
    ("said", "tensors", "complaint"),
    [
        (
            PROMPT,
            {"prompt_embeddings": (3, 48)},
            r"has the shape \[3, 48\]; \[3, 32\] would do, 3 embeddings of width 32",
        ),
        (PROMPT, {"prompt_embeddings": (4, 32)}, r"has the shape \[4, 32\]; \[3, 32\] would do"),
        (PROMPT, {"other": (3, 32)}, "there should be one tensor, prompt_embeddings, beside it; there is other"),
        (
            {**PROMPT, "peft_type": "PREFIX_TUNING"},
            {"prompt_embeddings": (3, 128)},
            r"\[3, 80\] would do, 3 keys and values of 2 layers with 2 heads of 10",
        ),
        ({"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": (3, 32)}, "'num_virtual_tokens' is missing"),
    ],
)
def test_virtual_tokens_of_another_size_are_told(said, tensors, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        read(tmp_path, said, {name: np.ones(shape, np.float32) for name, shape in tensors.items()})


def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    plan = plan_import(published("llama"))

    def complaint():
        with pytest.raises(UserError) as raised:
            read_peft(tmp_path, plan.family, plan.config, lambda module: np.ones(1))
        return str(raised.value)

    assert complaint() == f"'{tmp_path}' is no adapter of PEFT: it has no adapter_config.json"
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    assert complaint() == f"'{tmp_path}' has no adapter_model.safetensors"
    (tmp_path / "adapter_model.bin").write_bytes(b"anything")
    assert complaint().startswith(f"'{tmp_path / 'adapter_model.bin'}' is a pickle, which may run any program")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    assert "is damaged or is not of the format safetensors" in complaint()
    (tmp_path / "adapter_config.json").write_text("{")
    assert "is not JSON" in complaint()


def test_a_rank_above_what_a_kernel_can_have_is_brought_down_without_loss(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(size=x.shape).astype(np.float32)
        for name, x in updates("self_attn.k_proj", outputs=20, rank=24).items()
    }
    tuning, leaves = read(tmp_path, {**LORA, "r": 24, "lora_alpha": 48, "target_modules": ["k_proj"]}, tensors)
    assert tuning.lora.rank == 20
    scale = tuning.lora.alpha / tuning.lora.rank
    for layer in range(2):
        a, b = (tensors[f"{ROOT}.{layer}.self_attn.k_proj.lora_{part}.weight"] for part in "AB")
        found = leaves["layers/attention/key/lora_a"][layer] @ leaves["layers/attention/key/lora_b"][layer].reshape(
            20, 20
        )
        np.testing.assert_allclose(scale * found, 2 * (b @ a).T, atol=1e-4)
