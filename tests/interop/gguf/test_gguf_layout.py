import numpy as np
import pytest

from jaxllm.interop.gguf.families import FAMILIES, LLAMA, tensor_names
from jaxllm.interop.gguf.layout import from_gguf, layout, to_gguf
from tests.interop.gguf.models import BY_MODEL_TYPE, HEADS, KV_HEADS, WIDTH, config_of

SIZE = WIDTH // HEADS


def rotated(x: np.ndarray, angles: np.ndarray, pairs: tuple[slice, slice]) -> np.ndarray:
    """Channels of one head turned by an angle for each pair of them."""
    out, (a, b) = np.empty_like(x), pairs
    out[..., a] = x[..., a] * np.cos(angles) - x[..., b] * np.sin(angles)
    out[..., b] = x[..., b] * np.cos(angles) + x[..., a] * np.sin(angles)
    return out


def test_a_llamas_scores_are_the_same_when_neighbours_are_rotated():
    rng = np.random.default_rng(0)
    wq, wk = rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=(KV_HEADS * SIZE, WIDTH))
    x, y, angles = rng.normal(size=WIDTH), rng.normal(size=WIDTH), rng.normal(size=(2, SIZE // 2))
    config = config_of("llama")

    def scores(query: np.ndarray, key: np.ndarray, pairs: tuple[slice, slice]) -> np.ndarray:
        q = rotated((query @ x).reshape(HEADS, SIZE), angles[0], pairs)
        k = rotated((key @ y).reshape(KV_HEADS, SIZE), angles[1], pairs)
        return np.einsum("nh,nh->n", q, k.repeat(HEADS // KV_HEADS, axis=0))

    halves = slice(None, SIZE // 2), slice(SIZE // 2, None)
    neighbours = slice(None, None, 2), slice(1, None, 2)
    in_gguf = (to_gguf(wq, "pairs of heads", config), to_gguf(wk, "pairs of kv_heads", config))
    np.testing.assert_allclose(scores(*in_gguf, neighbours), scores(wq, wk, halves), rtol=1e-9)
    assert not np.allclose(scores(wq, wk, neighbours), scores(wq, wk, halves))


def test_gpt_neoxs_heads_are_taken_apart():
    rows = np.array([[f"{part}{head}.{i}" for i in range(SIZE)] for head in range(HEADS) for part in "qkv"]).ravel()
    apart = [f"{part}{head}.{i}" for part in "qkv" for head in range(HEADS) for i in range(SIZE)]
    assert to_gguf(rows, "parts of heads", config_of("gpt_neox")).tolist() == apart


@pytest.mark.parametrize(
    "how", ["pairs of heads", "pairs of kv_heads", "parts of heads", "transposed", "one more", None]
)
@pytest.mark.parametrize("shape", [(48, 5), (48,)])
def test_every_layout_has_its_inverse(how, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    np.testing.assert_array_equal(from_gguf(to_gguf(array, how, config), how, config), array)


@pytest.mark.parametrize(
    ("model_type", "module", "suffix", "how"),
    [
        ("llama", "model.layers.0.self_attn.k_proj", ".bias", "pairs of kv_heads"),
        ("llama", "model.layers.0.self_attn.v_proj", ".weight", None),
        ("qwen2", "model.layers.0.self_attn.q_proj", ".weight", None),
        ("gemma3_text", "model.layers.0.self_attn.q_norm", ".weight", "one more"),
        ("gemma2", "model.norm", ".weight", "one more"),
        ("gpt2", "transformer.h.0.mlp.c_fc", ".weight", "transposed"),
        ("gpt2", "transformer.h.0.mlp.c_fc", ".bias", None),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value", ".bias", "parts of heads"),
    ],
)
def test_tensors_have_the_layouts_of_llama_cpps_converter(model_type, module, suffix, how):
    assert layout(BY_MODEL_TYPE[model_type], module, suffix) == how


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_module_has_a_name_of_its_own(family):
    names = tensor_names(family, 3, 2)
    assert None not in {name for name, _ in names.values()}
    assert len(set(names.values())) == len(names)


def test_experts_share_a_name():
    names = tensor_names(BY_MODEL_TYPE["mixtral"], 2, 8)
    assert names["model.layers.1.block_sparse_moe.experts.7.w2"] == ("blk.1.ffn_down_exps", 7)
    assert names["model.layers.1.block_sparse_moe.gate"] == ("blk.1.ffn_gate_inp", None)
    assert tensor_names(LLAMA, 1)["lm_head"] == ("output", None)
