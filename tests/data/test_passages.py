import numpy as np

from jaxllm.data.document import Document
from jaxllm.data.passages import COMMON, passages, sharing
from jaxllm.data.survey import Split, survey
from tests.data.test_survey import Memory

STORY = "the lighthouse keeper wrote a letter to his sister about the storm that broke two of the windows"


def groups(*documents, words=8):
    found = sharing([passages(text, answer, words) for text, answer in documents])
    return [[j for j in range(len(found)) if found[j] == i] for i in sorted(set(found.tolist()))]


def test_a_chain_of_shared_passages_connects_documents_of_one_answer():
    asked = f"Read this: {STORY}. Who wrote?"
    told = f'"{STORY.upper()}!" Say who wrote it, and hold the lamp until all boats have come into the harbour'
    last = "hold the lamp until all boats have come into the harbour, please"
    other = "nothing of this is said anywhere else in all of the four texts before it"
    documents = [(text, "a keeper") for text in (asked, told, last, other)]
    assert groups(*documents) == [[0, 1, 2], [3]]
    assert groups(*documents[:2], (last, "a lamp")) == [[0, 1], [2]]
    assert groups((asked, "A keeper!"), (told, "a  keeper")) == [[0, 1]]
    assert groups(*documents, words=20) == [[0], [1], [2], [3]]
    assert groups(("too short", ""), ("too short", ""), ("", "")) == [[0], [1], [2]]


def test_what_many_documents_have_is_no_passage():
    wording = "read the text below and then answer with one word only"
    many = [(f"{wording} {i} {i + 1000}", "x") for i in range(COMMON + 1)]
    assert len(groups(*many)) == COMMON + 1
    assert len(groups(*many[:COMMON])) == 1


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
