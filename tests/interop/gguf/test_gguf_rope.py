import gguf
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.interop.gguf.read import open_gguf
from jaxllm.interop.gguf.rope import FREQS, LLAMA3, llama3_factors, rope_parameters
from tests.interop.gguf.models import edited, write

SCALED = {"rope_type": "llama3", "factor": 32.0, **LLAMA3}


def test_llama3s_factors_leave_short_waves_and_stretch_long_ones():
    factors = llama3_factors(128, 5e5, SCALED)
    waves = 2 * np.pi * 5e5 ** (np.arange(0, 128, 2) / 128)
    assert factors.dtype == np.float32
    assert np.all(factors[waves < 8192 / 4] == 1)
    assert np.all(factors[waves > 8192] == 32)
    assert np.all(np.diff(factors) >= 0)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 30.0},
        SCALED,
        {**SCALED, "factor": 8.0, "original_max_position_embeddings": 4096, "high_freq_factor": 6.0},
    ],
)
def test_scaling_comes_back_as_it_was(tmp_path, scaling):
    write(tmp_path / "m.gguf", "llama", head_dim=128, rope_scaling=scaling)
    assert open_gguf(tmp_path / "m.gguf").config["rope_scaling"] == scaling


def test_the_rotary_fields_of_configs_of_any_age_are_the_same():
    flat = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert (
        rope_parameters({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}).items() >= flat.items()
    )
    assert rope_parameters({"rope_parameters": flat}) == flat
    assert rope_parameters({"rotary_emb_base": 20})["rope_theta"] == 20
    assert rope_parameters({}) == {"rope_theta": 1e4, "rope_type": "default"}


def test_gemma3s_two_kinds_of_layers_are_kept_apart():
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    old = {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    for config in ({"rope_parameters": nested}, old):
        assert rope_parameters(config) == nested["full_attention"]
        assert rope_parameters(config, "sliding_attention") == nested["sliding_attention"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic': GGUF is written with"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"has no 'factor' in its rope_parameters \(linear\)"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "has no 'low_freq_factor'"),
        ({"model_type": "qwen2", "rope_scaling": SCALED}, "llama.cpp knows it for 'llama', and not for 'qwen2'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: a GGUF file of 'llama' stands for 1"),
    ],
)
def test_scaling_that_gguf_has_not_is_told_of(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        write(tmp_path / "m.gguf", changes.pop("model_type", "llama"), **changes)


def test_factors_of_another_formula_are_told_of(tmp_path):
    write(tmp_path / "m.gguf", "llama")
    odd = (np.linspace(1, 3, 8, dtype=np.float32), gguf.GGMLQuantizationType.F32)
    path = edited(tmp_path / "m.gguf", tmp_path / "odd.gguf", lambda _, tensors: tensors.update({FREQS: odd}))
    with pytest.raises(UserError, match=r"'rope_freqs\.weight' holds factors that Llama 3's formula does not give"):
        open_gguf(path)


def test_a_scaling_of_another_kind_is_told_of(tmp_path):
    write(tmp_path / "m.gguf", "llama")
    path = edited(
        tmp_path / "m.gguf", tmp_path / "long.gguf", lambda m, _: m.update({"llama.rope.scaling.type": "longrope"})
    )
    with pytest.raises(
        UserError, match=r"llama\.rope\.scaling\.type is 'longrope'; 'none', 'linear' and 'yarn' are read"
    ):
        open_gguf(path)
