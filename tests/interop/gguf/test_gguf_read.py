import gguf
import ml_dtypes
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.interop.gguf.read import BLOCKS, open_gguf
from tests.interop.gguf.models import LAYERS, VOCABULARY, WIDTH, bfloat16, edited, write

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "m.gguf"
    return path, write(path, "llama")


@pytest.fixture
def changed(llama, tmp_path):
    """Makes a copy of the file with some change."""
    return lambda change: edited(llama[0], tmp_path / "changed.gguf", change)


def half(low: int, high: int) -> float:
    return float(np.array([low, high], np.uint8).view(np.float16)[0])


def q8_0(b: list[int]) -> list[float]:
    return [half(*b[:2]) * (q - 256 if q > 127 else q) for q in b[2:]]


def q4_0(b: list[int]) -> list[float]:
    return [half(*b[:2]) * (q - 8) for q in [x & 15 for x in b[2:]] + [x >> 4 for x in b[2:]]]


def q4_1(b: list[int]) -> list[float]:
    return [half(*b[:2]) * q + half(*b[2:4]) for q in [x & 15 for x in b[4:]] + [x >> 4 for x in b[4:]]]


def fifth(b: list[int], i: int) -> int:
    return (int.from_bytes(b, "little") >> i & 1) << 4


def q5_0(b: list[int]) -> list[float]:
    low = [x & 15 for x in b[6:]] + [x >> 4 for x in b[6:]]
    return [half(*b[:2]) * ((q | fifth(b[2:6], i)) - 16) for i, q in enumerate(low)]


def q5_1(b: list[int]) -> list[float]:
    low = [x & 15 for x in b[8:]] + [x >> 4 for x in b[8:]]
    return [half(*b[:2]) * (q | fifth(b[4:8], i)) + half(*b[2:4]) for i, q in enumerate(low)]


def q4_k(b: list[int]) -> list[float]:
    packed, quants, out = b[4:16], b[16:], []
    for j in range(8):
        if j < 4:
            scale, least = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4
            least = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4
        part = quants[32 * (j // 2) : 32 * (j // 2) + 32]
        out += [half(*b[:2]) * scale * (x >> 4 if j % 2 else x & 15) - half(*b[2:4]) * least for x in part]
    return out


def q6_k(b: list[int]) -> list[float]:
    low, high, scales, scale = b[:128], b[128:192], np.array(b[192:208], np.uint8).view(np.int8), half(*b[208:])
    out = []
    for i in range(256):
        n, j, k = i // 128, i % 128 // 32, i % 32
        four = low[64 * n + 32 * (j % 2) + k] >> 4 * (j // 2) & 15
        out.append(scale * int(scales[i // 16]) * ((four | (high[32 * n + k] >> 2 * j & 3) << 4) - 32))
    return out


def with_embedding(kind: str, change, width: int = 256):
    """The file with an embedding of that type; the blocks are random bytes, their scales random halves."""
    number = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[number]
    block = gguf.GGML_QUANT_SIZES[number][0]
    data = np.random.default_rng(0).integers(0, 64, (VOCABULARY, width // block * size)).astype(np.uint8)
    return data, change(lambda metadata, tensors: tensors.update({"token_embd.weight": (data, number)}))


@pytest.mark.parametrize("reference", [q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q6_k])
def test_blocks_are_read_by_their_definition(changed, reference):
    kind = reference.__name__.upper()
    data, path = with_embedding(kind, changed)
    read = open_gguf(path).read(EMBEDDING)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    expected = [value for block in data[:3].reshape(-1, size) for value in reference(block.tolist())]
    np.testing.assert_allclose(read[:3].ravel(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_every_known_type_are_given_in_float32(changed, kind):
    _, path = with_embedding(kind, changed)
    model = open_gguf(path)
    assert model.tensors[EMBEDDING] == ((VOCABULARY, 256), "float32", kind)
    assert model.read(EMBEDDING).dtype == np.float32
    assert model.read(EMBEDDING).shape == (VOCABULARY, 256)


@pytest.mark.parametrize("kind", ["IQ4_XS", "TQ1_0", "Q8_1", "F64"])
def test_other_types_are_refused_by_name(changed, kind):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    data = np.zeros((VOCABULARY, 256 // block * size), np.uint8)
    path = changed(lambda metadata, tensors: tensors.update({"token_embd.weight": (data, number)}))
    with pytest.raises(UserError, match=rf"'token_embd\.weight' is of the type {kind}; the types read are F32.*Q6_K$"):
        open_gguf(path)


def test_bfloat16_is_given_as_it_is(llama, changed):
    weights = llama[1][EMBEDDING]
    kind = gguf.GGMLQuantizationType.BF16
    path = changed(lambda metadata, tensors: tensors.update({"token_embd.weight": (bfloat16(weights), kind)}))
    model = open_gguf(path)
    assert model.tensors[EMBEDDING] == ((VOCABULARY, WIDTH), "bfloat16", "BF16")
    np.testing.assert_array_equal(model.read(EMBEDDING), weights.astype(ml_dtypes.bfloat16))


def test_a_tensor_that_the_family_does_not_have_keeps_its_name(changed):
    extra = (np.ones(3, np.float32), gguf.GGMLQuantizationType.F32)
    model = open_gguf(changed(lambda metadata, tensors: tensors.update({"blk.0.surprise.weight": extra})))
    assert model.tensors["blk.0.surprise.weight"].shape == (3,)
    np.testing.assert_array_equal(model.read("blk.0.surprise.weight"), 1)


def test_what_follows_from_the_config_is_no_tensor(changed):
    extra = (np.ones(8, np.float32), gguf.GGMLQuantizationType.F32)
    model = open_gguf(changed(lambda metadata, tensors: tensors.update({"rope_freqs.weight": extra})))
    assert "rope_freqs.weight" not in model.tensors


def test_a_missing_tensor_is_only_missing(changed):
    model = open_gguf(changed(lambda metadata, tensors: tensors.pop("blk.1.attn_q.weight")))
    assert "model.layers.1.self_attn.q_proj.weight" not in model.tensors
    assert "model.layers.0.self_attn.q_proj.weight" in model.tensors


def test_biases_show_in_the_config(changed):
    bias = (np.ones(WIDTH, np.float32), gguf.GGMLQuantizationType.F32)
    model = open_gguf(changed(lambda metadata, tensors: tensors.update({"blk.0.attn_q.bias": bias})))
    assert model.config["attention_bias"]
    assert not model.config["mlp_bias"]
    assert model.tensors["model.layers.0.self_attn.q_proj.bias"].shape == (WIDTH,)


def set_to(**values):
    return lambda metadata, tensors: metadata.update({key.replace("__", "."): value for key, value in values.items()})


def drop(key):
    return lambda metadata, tensors: metadata.pop(key)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_to(general__architecture="rwkv6"), r"general\.architecture is 'rwkv6'; those read are gemma2, .*qwen3$"),
        (drop("general.architecture"), r"general\.architecture is 'none'"),
        (drop("llama.block_count"), r"has no 'llama\.block_count' in its metadata"),
        (drop("llama.attention.layer_norm_rms_epsilon"), r"has no 'llama\.attention\.layer_norm_rms_epsilon'"),
        (drop("tokenizer.ggml.model"), r"has no tokenizer: its metadata have no 'tokenizer\.ggml\.model'"),
        (drop("tokenizer.ggml.tokens"), r"has no 'tokenizer\.ggml\.tokens'"),
        (set_to(llama__block_count=2**31), rf"tensors, too few for llama\.block_count = {2**31}"),
        (set_to(llama__block_count="two"), r"llama\.block_count is 'two'; expected a whole number of at least 1"),
        (set_to(llama__attention__head_count=0), r"head_count is 0; expected a whole number of at least 1"),
        (set_to(llama__attention__head_count_kv=[2, 1]), r"head_count_kv is a list of 2; expected a whole number"),
        (set_to(llama__attention__head_count=3), r"'blk\.0\.attn_q\.weight' has 64 rows; 3 heads need a multiple of 6"),
        (set_to(llama__attention__value_length=3), r"value_length is not its key_length, 16"),
        (set_to(llama__rope__dimension_count=8), r"rope\.dimension_count is 8; expected a head's size, 16"),
        (
            set_to(llama__expert_count=4000, llama__expert_used_count=2),
            r"has no tensor of llama\.expert_count = 4000 experts",
        ),
        (set_to(split__count=3), r"is one of 3 parts: join them first"),
        (lambda metadata, tensors: tensors.pop("token_embd.weight"), r"has no tensor 'token_embd\.weight'"),
    ],
)
def test_what_cannot_be_read_is_told_of(changed, change, told):
    path = changed(change)
    with pytest.raises(UserError, match=told) as error:
        open_gguf(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_experts_without_the_stacked_tensor_are_told_of(tmp_path):
    write(tmp_path / "m.gguf", "mixtral")
    stacked = "blk.0.ffn_up_exps.weight"
    flat = (np.ones((96, 64), np.float32), gguf.GGMLQuantizationType.F32)
    path = edited(tmp_path / "m.gguf", tmp_path / "flat.gguf", lambda _, tensors: tensors.update({stacked: flat}))
    with pytest.raises(UserError, match=r"'blk\.0\.ffn_up_exps\.weight' has the shape \(96, 64\); expected three axes"):
        open_gguf(path)


def test_old_metadata_have_their_usual_meaning(tmp_path):
    write(tmp_path / "m.gguf", "gemma3_text")

    def older(metadata, tensors):
        for key in ("rope.freq_base", "rope.freq_base_swa", "attention.value_length"):
            del metadata[f"gemma3.{key}"]

    config = open_gguf(edited(tmp_path / "m.gguf", tmp_path / "old.gguf", older)).config
    assert config["rope_theta"] == 1e6
    assert config["rope_local_base_freq"] == 1e4
    assert config["layer_types"] == ["sliding_attention"] * LAYERS


def test_a_type_that_the_package_does_not_know_is_told_of_by_its_number(llama, tmp_path):
    name = b"token_embd.weight"
    content = bytearray(llama[0].read_bytes())
    at = content.index(name) + len(name) + 4 + 2 * 8
    content[at : at + 4] = (199).to_bytes(4, "little")
    (tmp_path / "new.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"'token_embd\.weight' is of the type 199; the types read are F32"):
        open_gguf(tmp_path / "new.gguf")
