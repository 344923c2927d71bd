import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxllm.config import UserError
from jaxllm.interop.gguf.splits import LLAMA3, QWEN2, WORDS, name_of_words, pre_tokenizer
from jaxllm.interop.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from jaxllm.interop.gguf.vocabulary import tokenizer_metadata
from tests.interop.gguf.models import byte_level, files_of

CONFIG = {"vocab_size": 320}


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    parts = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


@pytest.mark.parametrize(
    ("cut", "nfc", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, "gpt-2"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), True, "olmo"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
            False,
            "smollm",
        ),
        (split(LLAMA3), False, "llama-bpe"),
        (split(QWEN2), True, "qwen2"),
        (split(QWEN2), False, "deepseek-r1-qwen"),
        (split(r"\s+"), False, None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False, None),
    ],
)
def test_the_cut_into_words_is_known_by_what_it_does(cut, nfc, name):
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = cut
    if nfc:
        model.normalizer = normalizers.NFC()
    assert name_of_words(model) == name


@pytest.mark.parametrize("name", WORDS)
def test_every_known_cut_is_written_by_a_name_that_cuts_alike(name):
    content = json.loads(byte_level().to_str()) | {"pre_tokenizer": pre_tokenizer(WORDS[name])}
    content["normalizer"] = {"type": "NFC"} if WORDS[name].nfc else None
    written = name_of_words(tokenizers.Tokenizer.from_str(json.dumps(content)))
    assert WORDS[written].patterns == WORDS[name].patterns
    assert WORDS[written].nfc == WORDS[name].nfc


def test_tokens_have_their_types_and_rows_without_one_a_filler():
    metadata = tokenizer_metadata(files_of(), CONFIG)
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert len(types) == 320
    assert [types[token] for token in ("<|endoftext|>", "for", "<think>")] == [CONTROL, NORMAL, USER_DEFINED]
    assert types["[PAD319]"] == UNUSED
    assert "tokenizer.ggml.scores" not in metadata


def spaced(prefix: bool = False) -> tokenizers.Tokenizer:
    """A BPE with SentencePiece's bytes, such as Gemma's."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "<0x41>", "\u2581", "a", "b", "ab", "\u2581ab"])}
    merges = [("a", "b"), ("\u2581", "ab")]
    model = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    model.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    model.add_special_tokens(["<s>"])
    model.add_tokens([tokenizers.AddedToken("\u2581\u2581", normalized=False)])
    return model


@pytest.mark.parametrize("prefix", [False, True])
def test_scores_of_sentencepieces_bpe_follow_the_merges(prefix):
    metadata = tokenizer_metadata(files_of(spaced(prefix), bos_token="<s>", eos_token="<s>"), {"vocab_size": 9})
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    assert scores[tokens.index("ab")] > scores[tokens.index("\u2581ab")] > scores[tokens.index("a")]
    assert metadata["tokenizer.ggml.token_type"] == [UNKNOWN, CONTROL, BYTE, *[NORMAL] * 5, USER_DEFINED]
    assert tokens[8] == "  "
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is prefix


def test_whether_a_text_begins_with_a_special_token_is_seen_where_no_flag_says_it():
    model = tokenizers.Tokenizer.from_str(byte_level().to_str())
    assert not tokenizer_metadata(files_of(model), CONFIG)["tokenizer.ggml.add_bos_token"]
    model.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    metadata = tokenizer_metadata(files_of(model), CONFIG)
    assert metadata["tokenizer.ggml.add_bos_token"]
    assert not metadata["tokenizer.ggml.add_eos_token"]
    assert not tokenizer_metadata(files_of(model, add_bos_token=False), CONFIG)["tokenizer.ggml.add_bos_token"]


def test_special_tokens_that_the_tokenizer_does_not_name_are_the_models():
    files = {"tokenizer.json": files_of()["tokenizer.json"]}
    metadata = tokenizer_metadata(files, CONFIG | {"bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": None})
    ids = {key.split(".")[-1]: value for key, value in metadata.items() if key.endswith("_id")}
    assert ids == {"bos_token_id": 1, "eos_token_id": 0, "eot_token_id": 1}


def test_a_chat_template_in_the_tokenizers_config_is_written_too():
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    for template, written in (("one", "one"), (several, "d")):
        metadata = tokenizer_metadata(files_of(chat_template=template), CONFIG)
        assert metadata["tokenizer.chat_template"] == written
    assert "tokenizer.chat_template" not in tokenizer_metadata(files_of(), CONFIG)


def unigram() -> bytes:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["for name in names: print(name)"] * 9),
        model_writer=content,
        vocab_size=20,
        model_type="unigram",
        minloglevel=2,
    )
    return content.getvalue()


def word_level() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))


def odd() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer.from_str(byte_level().to_str())
    model.pre_tokenizer = split(r"\s+")
    return model


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (dict, r"no tokenizer\.json or tokenizer\.model: a GGUF file must hold its tokenizer"),
        (lambda: {"tokenizer.json": b"{"}, r"tokenizer\.json is not JSON"),
        (lambda: {"tokenizer.json": b"[]"}, r"tokenizer\.json holds no object"),
        (lambda: {"tokenizer.json": b"{}"}, r"tokenizer\.json cannot be read .*: it is damaged or of another kind"),
        (lambda: files_of(word_level()), r"tokenizer\.json holds a WordLevel model: GGUF is written with BPE"),
        (lambda: files_of(odd()), r"cuts text into words in a way GGUF has no name for; it has gpt-2, "),
        (lambda: files_of(tokenizers.Tokenizer(models.BPE({"a": 0}, []))), r"neither on bytes nor with byte_fallback"),
        (lambda: {"tokenizer.model": b"\x0a\xff"}, r"tokenizer\.model cannot be read"),
        (lambda: {"tokenizer.model": unigram()}, r"tokenizer\.model is of the type 'unigram': GGUF is written with"),
        (lambda: {**files_of(), "generation_config.json": b'{"pad_token_id": 999}'}, r"padding token has the id 999"),
    ],
)
def test_a_tokenizer_that_gguf_has_not_is_told_of(files, told):
    with pytest.raises(UserError, match=told):
        tokenizer_metadata(files(), CONFIG)


def test_more_tokens_than_the_model_has_are_told_of():
    with pytest.raises(UserError, match=r"the tokenizer has 275 tokens, and the model's vocab_size is 274"):
        tokenizer_metadata(files_of(), {"vocab_size": 274})
