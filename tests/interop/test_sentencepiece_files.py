import pytest

from jaxllm.config import TokenizerConfig, UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer
from jaxllm.interop.sentencepiece_files import hugging_face_files

TEXTS = [
    "def f(x):\n    return 10.25  # one",
    " two  spaces ",
    "",
    "emoji 😀 é 中文",
    "\ttab\r\n",
    "names<s></s> <unk>",
]


def trained(path, **settings):
    train_tokenizer(["for name in names:\n    print(name)\n" * 40], TokenizerConfig(vocab_size=288, **settings), path)
    return path


def test_the_tokenizer_json_of_a_sentencepiece_model_gives_its_tokens(tmp_path):
    path = trained(tmp_path / "tokenizer.model", extra_tokens=("<mask>",))
    files = hugging_face_files({path.name: path.read_bytes()}, {"vocab_size": 320})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    one, other = load_tokenizer(path), load_tokenizer(tmp_path / "tokenizer.json")
    assert (one.bos_id, one.eos_id, one.pad_id, one.mask_id) == (
        other.bos_id,
        other.eos_id,
        other.pad_id,
        other.mask_id,
    )
    for text in TEXTS:
        assert one.encode(text) == other.encode(text), text
        assert other.decode(other.encode(text)) == text


def test_files_that_are_enough_stay_as_they_are():
    files = {"tokenizer.json": b"{}", "tokenizer.model": b""}
    assert hugging_face_files(files, {}) == files
    assert hugging_face_files({"vocab.txt": b""}, {}) == {"vocab.txt": b""}


def test_a_unigram_model_is_refused(tmp_path):
    path = trained(tmp_path / "tokenizer.model", model_type="unigram")
    with pytest.raises(UserError, match=r"unigram|BPE"):
        hugging_face_files({path.name: path.read_bytes()}, {"vocab_size": 320})
