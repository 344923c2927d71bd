import hashlib

import pytest

from jaxllm.config import TokenizerConfig, UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer


@pytest.fixture
def trained(tmp_path, code_texts):
    def train(texts=None, vocab_size=380, **fields):
        path = tmp_path / "made.model"
        train_tokenizer(texts or code_texts, TokenizerConfig(vocab_size=vocab_size, **fields), path)
        return load_tokenizer(path)

    return train


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_equal_text_gives_an_equal_file(code_texts, tmp_path, model_type):
    digests = set()
    for name in ("first.model", "second.model"):
        train_tokenizer(iter(code_texts), TokenizerConfig(vocab_size=305, model_type=model_type), tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_vocabulary_has_the_size_that_was_asked_for(trained, model_type):
    assert trained(vocab_size=305, model_type=model_type).vocab_size == 305


@pytest.mark.parametrize("run", ["    ", "        ", "\t\t", "\t\t\t\t"])
def test_a_run_of_indentation_is_one_token(trained, run):
    tokenizer = trained()
    assert len(tokenizer.encode(run)) == 1
    assert tokenizer.decode(tokenizer.encode(f"{run}def")) == f"{run}def"


def test_line_ends_may_join_other_tokens(trained):
    tokenizer = trained(texts=["f():\n    g():\n\n    h():\n"] * 50, vocab_size=282)
    assert len(tokenizer.encode("():\n")) == 1


def test_each_digit_is_a_token(trained):
    assert len(trained(texts=["year 2024\n"] * 99, vocab_size=281).encode("20242024")) == 8


def test_a_text_longer_than_the_trainer_reads_at_once_is_used_to_its_end(trained):
    late = "a\n" * 50_000 + "zebra zebra zebra\n" * 2000
    assert len(trained(texts=[late], vocab_size=290).encode("zebra")) == 1
    assert len(trained(texts=["b" * 50_000 + "zebra zebra\n" * 999], vocab_size=290).encode("zebra")) == 1


def test_too_large_a_vocabulary_names_the_largest_which_then_works(trained):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size 90000 is more than .* the most is (\d+)") as caught:
        trained(vocab_size=90_000)
    most = int(str(caught.value).split()[-1])
    assert trained(vocab_size=most).vocab_size == most


def test_too_small_a_vocabulary_names_the_smallest_which_then_works(trained):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size 280 is less than .* the least is (\d+)") as caught:
        trained(vocab_size=280)
    least = int(str(caught.value).split()[-1])
    assert trained(vocab_size=least).vocab_size == least


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_extra_tokens_have_ids_that_no_text_makes(trained, model_type):
    tokenizer = trained(vocab_size=305, model_type=model_type, extra_tokens=("<mask>", "<extra_id_0>"))
    assert (tokenizer.vocab_size, tokenizer.token_id("<mask>"), tokenizer.token_id("<extra_id_0>")) == (305, 9, 10)
    assert {9, 10}.isdisjoint(tokenizer.encode("<mask> <extra_id_0>"))
    assert tokenizer.decode([9, *tokenizer.encode("<mask>"), 10]) == "<mask>"


def test_an_extra_token_that_every_tokenizer_has_is_named(trained):
    with pytest.raises(UserError, match=r"tokenizer\.extra_tokens: every trained tokenizer has '<\|user\|>'; leave it"):
        trained(extra_tokens=("<|user|>",))


def test_no_text_is_an_error(trained):
    with pytest.raises(UserError, match="no text to train the tokenizer on"):
        trained(texts=[""])


def test_a_training_that_fails_leaves_the_file_that_was_there(code_texts, tmp_path):
    path = tmp_path / "made.model"
    path.write_text("before")
    with pytest.raises(UserError):
        train_tokenizer(code_texts, TokenizerConfig(vocab_size=90_000), path)
    assert [p.name for p in tmp_path.iterdir()] == ["made.model"]
    assert path.read_text() == "before"
