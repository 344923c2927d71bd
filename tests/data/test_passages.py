import numpy as np

from jaxllm.data.document import Document
from jaxllm.data.passages import COMMON, passages, sharing
from jaxllm.data.split import Split
from jaxllm.data.survey import survey
from tests.data.test_survey import Memory

STORY = "the lighthouse keeper wrote a letter to his sister about the storm that broke two of the windows"


def pairs(*texts, words=8):
    return {tuple(pair) for pair in sharing([passages(text, words) for text in texts]).tolist()}


def test_pairs_connect_documents_that_share_a_passage():
    asked = f"Read this: {STORY}. Who wrote?"
    told = f'"{STORY.upper()}!" Say who wrote it, and hold the lamp until all boats have come into the harbour'
    last = "hold the lamp until all boats have come into the harbour, please"
    other = "nothing of this is said anywhere else in all of the four texts before it"
    assert pairs(asked, told, last, other) == {(0, 1), (1, 2)}
    assert pairs(asked, other, told, asked) == {(0, 2), (2, 3), (0, 3)}
    assert pairs(asked, told, last, other, words=20) == set()
    assert pairs("too short", "too short", "") == pairs() == set()


def test_what_many_documents_have_is_no_passage():
    wording = "read the text below and then answer with one word only"
    many = [f"{wording} {i} {i + 1000}" for i in range(COMMON + 1)]
    assert pairs(*many) == set()
    assert pairs(*many[:COMMON]) == {(i, i + 1) for i in range(COMMON - 1)}


def test_documents_that_share_a_passage_are_on_one_side_of_the_split():
    rows = [f"{way}: {i} {' '.join(f'w{i}x{j}' for j in range(12))}" for i in range(60) for way in ("ask", "tell")]
    documents = Memory([Document(f"d:{i}", text, named_by_place=True) for i, text in enumerate(rows)])
    found = survey([documents], Split(0.2, passage_words=10))
    assert 3 < found.held_out.sum() / 2 < 30
    np.testing.assert_array_equal(found.held_out[::2], found.held_out[1::2])
    apart = survey([documents], Split(0.2))
    assert (apart.held_out[::2] != apart.held_out[1::2]).any()


def test_what_shares_a_passage_with_a_task_that_is_held_out_is_held_out_too():
    documents = [Document(f"d:{i}", f"{i} {STORY} {i}", named_by_place=True, task="ab"[i % 2]) for i in range(2)]
    documents += [Document(f"e:{i}", f"something else {i}", named_by_place=True, task="a") for i in range(4)]
    found = survey([Memory(documents)], Split(0.0, [("b",)], passage_words=10))
    assert found.held_out.tolist() == [True, True, False, False, False, False]
