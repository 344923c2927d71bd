"""What virtual tokens begin as."""

import numpy as np
import pytest

from jaxllm.config import PromptConfig, UserError
from jaxllm.train.begin import COMMON, prompt_tokens

SIZE = COMMON + 100


class Letters:
    """Each letter is a token; the first three ids stand for no text."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def special_ids(self):
        return {0, 1, 2}


def counts(commonest):
    """The lower an id, the commoner it is, from `commonest` on; those before it are as rare as can be."""
    return np.where(np.arange(SIZE) < commonest, 0, SIZE - np.arange(SIZE))


def begun(counts_V=None, seed=0, **fields):
    return prompt_tokens(PromptConfig(**fields), Letters(), counts(0) if counts_V is None else counts_V, seed)


def test_they_are_drawn_from_the_commonest_tokens_that_stand_for_text():
    drawn = {token for (token,) in begun(length=200_000)}
    assert drawn == set(range(3, 3 + COMMON))
    assert begun(length=20, seed=1) == begun(length=20, seed=1) != begun(length=20, seed=2)


def test_a_token_that_is_not_in_the_text_is_never_drawn():
    assert {token for (token,) in begun(counts(SIZE - 2), length=500)} == {SIZE - 2, SIZE - 1}


def test_labels_come_first_and_common_tokens_after_them():
    tokens = begun(length=4, start="labels", labels=("no", "yes"))
    assert tokens[:2] == [[110, 111], [121, 101, 115]]
    assert [len(rest) for rest in tokens[2:]] == [1, 1]
    assert begun(length=2, start="labels", labels=("no", "yes")) == tokens[:2]


def test_a_label_without_a_token_is_told():
    with pytest.raises(UserError, match=r"tuning\.prompt\.labels has '', which makes no token; leave it out"):
        begun(length=4, start="labels", labels=("no", ""))


def test_uniform_numbers_are_of_no_token():
    assert begun(length=4, start="uniform") == []
