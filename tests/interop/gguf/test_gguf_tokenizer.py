import io
import json
import random

import numpy as np
import pytest
import sentencepiece
import tokenizers

from jaxllm.config import UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.interop.gguf.header import Header
from jaxllm.interop.gguf.read import open_gguf
from jaxllm.interop.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_files
from jaxllm.interop.gguf.vocabulary import tokenizer_metadata
from jaxllm.interop.gguf.write import write_gguf
from tests.interop.gguf.models import byte_level, config_of, files_of, sources, tensors_of

TEXTS = [
    "",
    " ",
    "for name in names:\n    print(name)\n",
    "  two spaces,   three    four\t\ttabs\r\n\n\n",
    "x = 1234567 + 3.14e10  # comment",
    "accents e\u0301 \u00e9, \u4e2d\u6587, \u0627\u0644, \U0001f600",
    "control \x01\x7f and \u2028\xa0\ufffd",
    "spelled <|endoftext|> <|im_end|><think> <s> </s> <unk> [PAD301] <0x41>",
    *("".join(random.Random(seed).choices("for name in\n (1)\t\u00e9\u4e2d<s>", k=60)) for seed in range(20)),
]


@pytest.fixture(scope="module", params=["prefix", "tabs"])
def spaced(request) -> bytes:
    """A SentencePiece model: like Llama 2's, which puts a space before the text; or with a token of tabs, as ours."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["for name in names: print(name)", "  if  x:   y"] * 9),
        model_writer=content,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=request.param == "prefix",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\t\t"] if request.param == "tabs" else [],
        pad_id=3,
        minloglevel=2,
    )
    return content.getvalue()


def read_back(tmp_path, files, **changes):
    config = config_of("llama", **changes)
    write_gguf(tmp_path / "m.gguf", config, sources(tensors_of(config)), files, "f16")
    return open_gguf(tmp_path / "m.gguf").files


def parsed(files, name="tokenizer_config.json"):
    return json.loads(files[name])


def test_a_byte_level_tokenizer_encodes_as_the_original(tmp_path):
    files = read_back(tmp_path, files_of())
    read = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in TEXTS:
        assert read.encode(text).ids == byte_level().encode(text).ids
        assert read.decode(read.encode(text).ids) == byte_level().decode(read.encode(text).ids)
    assert read.get_vocab() == byte_level().get_vocab()  # the fillers of the embedding's rows are none of it


def test_a_sentencepiece_tokenizer_encodes_as_the_original(tmp_path, spaced):
    original = sentencepiece.SentencePieceProcessor(model_proto=spaced)
    files = read_back(tmp_path, {"tokenizer.model": spaced})
    read = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    read.encode_special_tokens = True  # SentencePiece makes them by their id only
    for text in TEXTS[1:]:
        ids = original.encode(text)
        assert read.encode(text, add_special_tokens=False).ids == ids, text
        assert read.decode(ids) == original.decode(ids)


def test_a_file_that_was_read_is_written_and_read_as_it_was(tmp_path, spaced):
    for name, files in {"bytes": files_of(), "spaced": {"tokenizer.model": spaced}}.items():
        (tmp_path / name).mkdir()
        first = read_back(tmp_path / name, files)
        second = read_back(tmp_path / name, first)
        assert second == first


def test_the_package_loads_what_is_read(tmp_path):
    files = read_back(tmp_path, files_of(bos_token="<|im_end|>", pad_token="<think>"))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 0, 274)


def test_special_tokens_are_named_and_their_ids_given_for_generation(tmp_path):
    files = files_of(pad_token={"content": "<|im_end|>"}, add_bos_token=True)
    files["generation_config.json"] = json.dumps({"eos_token_id": [0, 274]}).encode()
    files["chat_template.jinja"] = b"{{ messages }}"
    read = read_back(tmp_path, files)
    named = parsed(read)
    assert (named["bos_token"], named["eos_token"], named["pad_token"]) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<|im_end|>",
    )
    assert (named["add_bos_token"], named["add_eos_token"], named["model_max_length"]) == (True, False, 32)
    assert parsed(read, "generation_config.json") == {"bos_token_id": 0, "eos_token_id": [0, 274], "pad_token_id": 1}
    assert read["chat_template.jinja"] == b"{{ messages }}"
    assert tokenizers.Tokenizer.from_str(read["tokenizer.json"].decode()).encode("for").ids[0] == 0


def header(tokens, types=None, model="llama", arch="llama", **more):
    metadata = {"general.architecture": arch, "tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens}
    if types:
        metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    return Header("m.gguf", metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}, {})


def model_of(header):
    return parsed(tokenizer_files(header, 1), "tokenizer.json")


SPACED = ["<unk>", "<s>", "</s>", "<0x41>", "\u2581", "a", "b", "ab", "\u2581a", "ba", "  ", "<x>", "[PAD12]"]
TYPES = [UNKNOWN, CONTROL, CONTROL, BYTE, *[NORMAL] * 6, USER_DEFINED, USER_DEFINED, UNUSED]


def test_merges_are_in_the_order_of_the_scores_after_those_of_spaces():
    scores = np.array([0, 0, 0, 0, -9, -9, -9, -2, -1, -3, -1000, 0, 0], np.float32)
    model = model_of(header(SPACED, TYPES, scores=scores))
    assert model["model"]["merges"] == [["\u2581", "\u2581"], ["\u2581", "a"], ["a", "b"], ["b", "a"]]
    assert model["model"]["unk_token"] == "<unk>"
    assert "[PAD12]" not in model["model"]["vocab"]


def test_a_gemmas_merges_are_in_the_order_of_its_tokens_after_those_of_spaces():
    scores = np.zeros(len(SPACED), np.float32)
    model = model_of(header(SPACED, TYPES, arch="gemma3", scores=scores, add_space_prefix=False))
    assert model["model"]["merges"] == [["\u2581", "\u2581"], ["a", "b"], ["\u2581", "a"], ["b", "a"]]
    assert model["normalizer"]["normalizers"] == [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]


def test_runs_of_spaces_are_written_as_they_were_read():
    files = tokenizer_files(header(SPACED[:-1], TYPES[:-1], arch="gemma3"), 1)
    written = tokenizer_metadata(files, {"vocab_size": len(SPACED) - 1})
    assert written["tokenizer.ggml.tokens"] == SPACED[:-1]
    assert written["tokenizer.ggml.token_type"] == TYPES[:-1]


def test_control_tokens_are_special_and_those_that_users_defined_are_added():
    added = {entry["content"]: entry["special"] for entry in model_of(header(SPACED, TYPES))["added_tokens"]}
    assert added == {"<unk>": True, "<s>": True, "</s>": True, "\u2581\u2581": False, "<x>": False}


def test_files_without_ids_and_flags_mean_what_llama_cpp_takes_for_them():
    files = tokenizer_files(header(SPACED, TYPES), 1)
    assert parsed(files).items() >= {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}.items()
    bytes_of_gpt2 = header(["a", "b", "ab"], model="gpt2", arch="gpt2", merges=["a b"])
    assert "bos_token" not in parsed(tokenizer_files(bytes_of_gpt2, 1))


def test_a_word_that_is_a_token_needs_no_merge_where_the_vocabulary_is_llama3s():
    three = header(["a", "b", "ab"], model="gpt2", merges=["a b"], pre="llama-bpe", bos_token_id=0)
    assert model_of(three)["model"]["ignore_merges"]
    assert parsed(tokenizer_files(three, 1))["add_bos_token"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert'; 'gpt2' \(byte-level BPE\) and 'llama'"),
        ({"model": "gpt2", "pre": "klingon"}, r"tokenizer\.ggml\.pre is 'klingon', .*; command-r, .*tekken are"),
        ({"model": "gpt2"}, r"tokenizer\.ggml\.pre is '', a cut into words not known here"),
        ({"model": "gpt2", "pre": "gpt-2"}, r"has no 'tokenizer\.ggml\.merges'"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a c"]}, r"merges has 'a c', whose tokens are not in the vocab"),
        ({"scores": np.zeros(2, np.float32)}, r"tokenizer\.ggml\.scores has 2 entries for 3 tokens"),
        ({"types": [1, 1]}, r"tokenizer\.ggml\.token_type has 2 entries for 3 tokens"),
        ({"bos_token_id": 99}, r"bos_token_id is 99; the tokenizer has 3 tokens"),
        ({"add_bos_token": "yes"}, r"add_bos_token is 'yes'; expected true or false"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_told_of(changes, told):
    with pytest.raises(UserError, match=told):
        tokenizer_files(header(["a", "b", "ab"], **changes), 1)
