import pytest

from jaxllm.config import UserError
from jaxllm.interop.gguf.config import family_written, write_config
from jaxllm.interop.gguf.read import open_gguf
from tests.interop.gguf.models import LAYERS, config_of, write


def metadata(model_type: str, **changes):
    config = config_of(model_type, **changes)
    return write_config(config, family_written(config))


@pytest.mark.parametrize(
    ("model_type", "changes", "told"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': a GGUF file of 'llama' stands for 'silu' or 'swish'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True: .* stands for False"),
        ("llama", {"hidden_size": None}, "has no 'hidden_size', which a GGUF file must say"),
        ("llama", {"hidden_size": "64"}, "hidden_size = '64' in the model's config: expected a whole number from 1"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads = 0 in the model's config: expected a whole number"),
        ("llama", {"max_position_embeddings": 2**40}, "max_position_embeddings = 1099511627776 .*: expected a whole"),
        ("llama", {"rms_norm_eps": True}, "rms_norm_eps = True in the model's config: expected a number"),
        ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual = 1 .*: expected true or false"),
        ("llama", {"vocab_size": None}, "vocab_size = None in the model's config: expected a whole number"),
        ("phi", {"partial_rotary_factor": None}, "has no 'partial_rotary_factor'"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm = True"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar = 144: llama.cpp takes 24 for a 'gemma2'"),
    ],
)
def test_a_config_that_gguf_cannot_say_is_told_of(model_type, changes, told):
    with pytest.raises(UserError, match=told):
        metadata(model_type, **changes)


def test_a_model_of_another_type_is_told_of():
    with pytest.raises(UserError, match=r"model_type = 'mamba': GGUF is written for gemma2, .*qwen3$"):
        family_written({"model_type": "mamba"})


def test_gemmas_of_another_order_of_layers_say_so(tmp_path):
    types = ["full_attention", "sliding_attention"]
    assert metadata("gemma2", layer_types=types)["gemma2.attention.sliding_window_pattern"] == [False, True]
    assert "gemma2.attention.sliding_window_pattern" not in metadata("gemma2", layer_types=types[::-1])
    write(tmp_path / "m.gguf", "gemma3_text", layer_types=types)
    assert open_gguf(tmp_path / "m.gguf").config["layer_types"] == types


def test_a_gemma_without_a_window_sees_everything(tmp_path):
    write(tmp_path / "m.gguf", "gemma3_text", sliding_window=None)
    config = open_gguf(tmp_path / "m.gguf").config
    assert config["sliding_window"] is None
    assert config["layer_types"] == ["full_attention"] * LAYERS


def test_the_largest_gemma_scales_scores_as_llama_cpp_assumes():
    config = config_of("gemma2", num_hidden_layers=46, query_pre_attn_scalar=16)
    assert write_config(config, family_written(config))["gemma2.block_count"] == 46


def test_a_size_of_heads_that_is_not_said_is_their_share_of_the_width():
    assert metadata("llama")["llama.attention.key_length"] == 16
    assert metadata("llama", head_dim=24)["llama.rope.dimension_count"] == 24


def test_gpt2s_inner_size_is_four_times_the_width_where_it_is_not_said():
    assert metadata("gpt2")["gpt2.feed_forward_length"] == 256
    assert metadata("gpt2", n_positions=None, n_ctx=9)["gpt2.context_length"] == 9
