import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxllm.config import TokenizerConfig, UserError
from jaxllm.data.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer

NASTY = [
    "",
    " ",
    "\n",
    "  two spaces before, three after   ",
    "\ttab\t\tbed\t\t\t\t\t\n\t\tx",
    "windows\r\nold mac\runix\n\n\n\n",
    "def f(x):\n    if x:\n        return 10.25  # comment\n",
    "emoji 😀👩‍👩‍👧, accents e\u0301 é, 中文, العربية",
    "control \x01\x02\x1b[0m\x7f and separators \u2028\u2029\x85\xa0",
    "no characters \ufffd \ufffe \U0010ffff",
    "spelled <s> </s> <unk> <pad> <|user|> <0x41> \u2047",
    "SentencePiece's own space \u2581 and \u2581\u2581, unknown \u2585",
    "full-width \uff11\uff12 and \ufb01 ligature, K sign \u212a",  # what NFKC would change
]


def random_text(seed: int) -> str:
    choose = random.Random(seed)
    kinds = (lambda: choose.randrange(1, 128), lambda: choose.choice((9, 10, 13, 32, 0x2581, 0xFFFD)))
    wide = (lambda: choose.randrange(128, 0xD800), lambda: choose.randrange(0xE000, 0x110000))
    return "".join(chr(choose.choice(kinds + wide)()) for _ in range(40))


@pytest.fixture(scope="session")
def hugging_face_path(tmp_path_factory) -> Path:
    """A byte-level BPE such as GPT-2's, with one special token."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["for name in names:\n    print(name)\n"] * 9, trainer)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(scope="session")
def prefixed(tmp_path_factory) -> Tokenizer:
    """A SentencePiece model like Llama 2's, which puts a space before the text."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["for name in names: print(name)"] * 9),
        model_writer=content,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("prefixed") / "llama.model"
    path.write_bytes(content.getvalue())
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def word_piece(tmp_path_factory) -> Tokenizer:
    """A WordPiece model such as BERT's."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "name", "##s", "print", "##ing", ","]
    model = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.add_special_tokens(pieces[:5])
    path = tmp_path_factory.mktemp("word_piece") / "tokenizer.json"
    model.save(str(path))
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def trained_with_mask(code_texts, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("mask") / "mask.model"
    train_tokenizer(code_texts, TokenizerConfig(vocab_size=305, extra_tokens=("<mask>",)), path)
    return load_tokenizer(path)


@pytest.fixture(params=["sentencepiece", "hugging face", "prefixed"])
def any_tokenizer(request, tokenizer, hugging_face_path, prefixed) -> Tokenizer:
    kinds = {
        "sentencepiece": tokenizer,
        "hugging face": load_tokenizer(hugging_face_path),
        "prefixed": prefixed,
    }
    return kinds[request.param]


@pytest.mark.parametrize("text", NASTY)
def test_every_text_comes_back_exactly(tokenizer, hugging_face_path, text):
    for each in (tokenizer, load_tokenizer(hugging_face_path)):
        assert each.decode(each.encode(text)) == text


def test_random_text_comes_back_exactly(tokenizer, hugging_face_path):
    for each in (tokenizer, load_tokenizer(hugging_face_path)):
        for seed in range(200):
            assert each.decode(each.encode(random_text(seed))) == random_text(seed)


def test_a_batch_is_encoded_like_its_texts(any_tokenizer):
    assert any_tokenizer.encode_batch(NASTY) == [any_tokenizer.encode(text) for text in NASTY]
    assert any_tokenizer.encode_batch([]) == []


def test_no_text_makes_a_special_token(any_tokenizer):
    special = {any_tokenizer.bos_id, any_tokenizer.eos_id, any_tokenizer.pad_id}
    text = "<s></s><unk><pad><|user|><|endoftext|>"
    assert special.isdisjoint(any_tokenizer.encode(text))
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_spelled_special_tokens_are_tokens_where_that_is_asked_for(any_tokenizer):
    begin, end = (any_tokenizer.token_name(i) for i in (any_tokenizer.bos_id, any_tokenizer.eos_id))
    assert {begin, end} <= any_tokenizer.specials
    ids = any_tokenizer.encode_with_specials(f"{begin}name{end}\nname{end}")
    assert (ids[0], ids[-1], ids.count(any_tokenizer.eos_id)) == (
        any_tokenizer.bos_id,
        any_tokenizer.eos_id,
        2 + (begin == end),
    )
    assert any_tokenizer.decode(ids) == "name\nname"
    assert any_tokenizer.encode_with_specials() == any_tokenizer.encode_with_specials("") == []


@pytest.mark.parametrize("text", NASTY)
def test_text_that_spells_no_special_token_is_encoded_alike(any_tokenizer, text):
    text = text.replace("<", "")
    assert any_tokenizer.encode_with_specials(text) == any_tokenizer.encode(text)


def test_every_second_part_is_text_whatever_it_spells(any_tokenizer):
    end = any_tokenizer.token_name(any_tokenizer.eos_id)
    ids = any_tokenizer.encode_with_specials(f"for{end}", f" {end}{end}", f"{end} name", end)
    assert ids.count(any_tokenizer.eos_id) == 2
    assert any_tokenizer.decode(ids) == f"for {end}{end} name{end}"


def test_only_the_beginning_of_a_text_gets_a_space_that_it_does_not_have(prefixed):
    assert prefixed.encode_with_specials("name") == prefixed.encode("name") == [prefixed.token_id("▁name")]
    ids = prefixed.encode_with_specials("<s>name</s> name")
    spelled = [prefixed.token_name(i) for i in ids]
    assert spelled[0] == "<s>"
    assert "".join(spelled) == "<s>name</s>▁name"


def test_a_token_is_named_as_it_is_spelled(any_tokenizer):
    for i in range(any_tokenizer.vocab_size):
        assert any_tokenizer.token_id(any_tokenizer.token_name(i)) == i
    assert any_tokenizer.token_name(any_tokenizer.vocab_size) == ""


def test_special_tokens_and_ids_past_the_vocabulary_decode_to_nothing(any_tokenizer):
    ids = [
        any_tokenizer.bos_id,
        *any_tokenizer.encode("name"),
        any_tokenizer.eos_id,
        any_tokenizer.vocab_size,
        10**6,
    ]
    assert any_tokenizer.decode(ids) == "name"


def test_special_tokens_have_fixed_ids(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    chat = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
    assert [tokenizer.token_id(name) for name in chat] == [4, 5, 6, 7, 8]
    assert tokenizer.token_id("<|nobody|>") is None


def test_a_vocabulary_without_padding_pads_with_its_end_token(prefixed, hugging_face_path):
    assert (prefixed.bos_id, prefixed.eos_id, prefixed.pad_id) == (1, 2, 2)
    same = load_tokenizer(hugging_face_path)
    assert same.bos_id == same.eos_id == same.pad_id == same.token_id("<|endoftext|>")


def test_the_configuration_beside_a_tokenizer_json_names_its_special_tokens(hugging_face_path, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(hugging_face_path.read_bytes())
    before = load_tokenizer(path)
    named = {"bos_token": "a", "eos_token": {"content": "b"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    after = load_tokenizer(path)
    assert (after.bos_id, after.eos_id, after.pad_id) == (
        after.token_id("a"),
        after.token_id("b"),
        after.token_id("b"),
    )
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("named", "begin"),
    [
        ({"cls_token": "a", "sep_token": "b"}, "a"),
        ({"cls_token": {"content": "a"}, "sep_token": "b", "bos_token": None}, "a"),
        ({"cls_token": "a", "sep_token": "a", "bos_token": "c", "eos_token": "b"}, "c"),
    ],
)
def test_bert_names_its_own_beginning_and_end(hugging_face_path, tmp_path, named, begin):
    (tmp_path / "tokenizer.json").write_bytes(hugging_face_path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    assert (found.bos_id, found.eos_id) == (found.token_id(begin), found.token_id("b"))


@pytest.mark.parametrize("token", [5, ["a"], {"content": 5}])
def test_a_special_token_that_is_no_text_is_refused(hugging_face_path, tmp_path, token):
    (tmp_path / "tokenizer.json").write_bytes(hugging_face_path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json': the eos token is .*: expected its text"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_tokens_that_stand_for_no_text_are_known(tokenizer, hugging_face_path, word_piece):
    assert tokenizer.special_ids() == set(range(9))
    assert load_tokenizer(hugging_face_path).special_ids() == {0}
    assert {word_piece.token_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")} == (
        word_piece.special_ids()
    )


def test_the_mask_is_found_by_its_spelling(trained_with_mask, tokenizer, word_piece):
    assert trained_with_mask.mask_id == trained_with_mask.token_id("<mask>") == 9
    assert word_piece.mask_id == word_piece.token_id("[MASK]")
    assert tokenizer.mask_id is None


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    starts, found = tokenizer.word_starts(), []
    for i in tokenizer.encode(text):
        if starts[i] or not found:
            found.append([])
        found[-1].append(i)
    return [tokenizer.decode(ids).strip() for ids in found]


def test_word_starts_cut_text_where_it_has_spaces(tokenizer, hugging_face_path, word_piece):
    for each in (tokenizer, load_tokenizer(hugging_face_path)):
        found = words(each, "zebras print 10.25\n\tself.name = ü")
        assert [word for word in found if word] == ["zebras", "print", "10.25", "self.name", "=", "ü"]
    found = words(word_piece, "names, printing")
    assert found == ["names", ",", "printing"]


def test_a_vocabulary_that_marks_no_words_says_so(tmp_path):
    model = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    model.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").word_starts() is None


def test_truncation_and_padding_that_a_file_asks_for_are_not_applied(hugging_face_path, tmp_path):
    model = tokenizers.Tokenizer.from_file(str(hugging_face_path))
    model.enable_truncation(3)
    model.enable_padding(length=9)
    model.save(str(tmp_path / "tokenizer.json"))
    cut, whole = load_tokenizer(tmp_path / "tokenizer.json"), load_tokenizer(hugging_face_path)
    assert cut.encode_batch(["some longer text", "a"]) == whole.encode_batch(["some longer text", "a"])


def test_the_fingerprint_is_of_the_content(model_path, tmp_path):
    copy = tmp_path / "renamed.model"
    copy.write_bytes(model_path.read_bytes())
    assert load_tokenizer(copy).fingerprint == load_tokenizer(model_path).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "tokenizer.bin",
            b"x",
            r"tokenizer '.*tokenizer\.bin': expected a SentencePiece '\.model' or a Hugging Face",
        ),
        ("missing.model", None, r"cannot read the tokenizer '.*missing\.model': No such file or directory"),
        ("empty.model", b"", r"tokenizer '.*empty\.model' cannot be read \(the file is empty\)"),
        (
            "broken.model",
            b"garbage" * 9,
            r"tokenizer '.*broken\.model' cannot be read .* damaged or of another kind",
        ),
        (
            "tokenizer.json",
            b'{"a": 1}',
            r"tokenizer '.*tokenizer\.json' cannot be read .* damaged or of another kind",
        ),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer '.*tokenizer\.json' cannot be read"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(tmp_path / name)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    model = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    model.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json' has no end-of-document token"):
        load_tokenizer(tmp_path / "tokenizer.json")


# Streaming


@pytest.mark.parametrize("text", [*NASTY, *map(random_text, range(20))])
def test_a_stream_gives_the_text_and_never_half_a_character(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    decoder = StreamDecoder(any_tokenizer)
    parts = [decoder.feed(i) for i in ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + decoder.finish() == any_tokenizer.decode(ids)


def test_a_stream_is_no_slower_than_its_characters(tokenizer):
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("x😀y")
    assert [decoder.feed(i) for i in ids] == ["x", "", "", "", "😀", "y"]


def test_a_stream_begins_after_the_text_before_it_whatever_that_ends_with(any_tokenizer):
    for before in ("word", "a \ufffd", "\ufffd"):
        decoder = StreamDecoder(any_tokenizer, any_tokenizer.encode(before))
        ids = any_tokenizer.encode("word 😀")
        assert "".join(map(decoder.feed, ids)).strip() == "word 😀"


def test_any_ids_in_any_portions_stream_to_what_they_decode_to(any_tokenizer):
    for seed in range(100):
        choose = random.Random(seed)
        ids = [choose.randrange(any_tokenizer.vocab_size) for _ in range(30)]
        decoder, text, at = StreamDecoder(any_tokenizer), "", 0
        while at < len(ids):
            size = choose.randrange(1, 5)
            text += decoder.feed(*ids[at : at + size])
            at += size
        assert text + decoder.finish() == any_tokenizer.decode(ids)
        assert decoder.finish() == ""
