import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.data.document import BadRow, Document
from jaxllm.data.split import Split, share_of
from jaxllm.data.survey import BadRows, kept_documents, sample, survey


class Memory:
    def __init__(self, texts: dict[str, str] | list[Document]):
        self._items = [Document(*item) for item in texts.items()] if isinstance(texts, dict) else texts

    def fingerprint(self) -> str:
        return ""

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Document:
        return self._items[index]


def split(*sources: dict[str, str], fraction: float = 0.3) -> tuple[dict[str, str], dict[str, str]]:
    """(training, held-out) texts by name."""
    opened = [Memory(source) for source in sources]
    sides: tuple[dict[str, str], dict[str, str]] = {}, {}
    for _, held_out, document in kept_documents(opened, survey(opened, Split(fraction))):
        sides[held_out][document.name] = document.text
    return sides


MANY = {f"name {i}": f"text {i}" for i in range(1000)}


def test_the_share_that_was_asked_for_is_held_out():
    for fraction in (0.05, 0.3):
        training, held_out = split(MANY, fraction=fraction)
        assert len(training) + len(held_out) == 1000
        assert abs(len(held_out) - 1000 * fraction) < 4 * np.sqrt(1000 * fraction * (1 - fraction))
    assert split(MANY, fraction=0.0)[1] == {}


def test_the_split_follows_from_each_name_alone():
    _, held_out = split(MANY)
    assert set(held_out) == {name for name in MANY if share_of(name) < 0.3}
    backwards = dict(reversed(MANY.items()))
    assert split(backwards)[1] == held_out
    fewer = {name: text for i, (name, text) in enumerate(MANY.items()) if i % 3}
    assert set(split(fewer)[1]) == set(held_out) & set(fewer)
    other_texts = {name: text + " changed" for name, text in MANY.items()}
    assert set(split(other_texts)[1]) == set(held_out)
    assert set(split(fewer, {k: v for k, v in MANY.items() if k not in fewer})[1]) == set(held_out)


def test_documents_that_are_named_by_their_place_are_split_by_their_texts():
    def rows(texts: list[str]) -> list[Document]:
        return [Document(f"file:{i}", text, named_by_place=True) for i, text in enumerate(texts)]

    texts = list(MANY.values())
    chosen = {text for text in texts if share_of(text) < 0.3}
    for variant in (texts, texts[::-1], ["put before", *texts], texts[100:]):
        documents = rows(variant)
        held_out = {documents[i].text for i in np.flatnonzero(survey([Memory(documents)], Split(0.3)).held_out)}
        assert held_out - {"put before"} == chosen & set(variant)


def test_a_larger_share_only_adds_documents():
    assert set(split(MANY, fraction=0.1)[1]) < set(split(MANY, fraction=0.2)[1])


def test_equal_texts_are_kept_once_and_counted_over_all_sources():
    first = {"a": "same", "b": "other", "c": "same"}
    second = {"d": "same", "e": "new"}
    found = survey([Memory(first), Memory(second)], Split(0.0))
    assert found.duplicates == 2
    assert list(zip(found.source, found.index, strict=True)) == [(0, 0), (0, 1), (1, 1)]


def test_no_text_is_on_both_sides():
    twins = {f"twin {i}": f"text {i}" for i in range(1000)}
    training, held_out = split(MANY, twins)
    assert len(training) + len(held_out) == 1000
    assert not set(training.values()) & set(held_out.values())


def test_the_side_of_equal_texts_follows_from_the_text_in_any_order():
    twins = {f"twin {i}": f"text {i}" for i in range(1000)}
    chosen = {text for text in MANY.values() if share_of(text) < 0.3}
    for sources in ((MANY, twins), (twins, MANY), (dict(reversed(twins.items())), MANY)):
        assert set(split(*sources)[1].values()) == chosen


def test_a_name_that_repeats_with_other_texts_is_kept_on_one_side():
    training, held_out = split(MANY, {name: text + "!" for name, text in MANY.items()})
    assert not set(training) & set(held_out)


def test_empty_documents_are_dropped_and_counted():
    found = survey([Memory({"a": "", "b": "b", "c": "", "d": "\n"})], Split(0.0))
    assert (found.empty, found.index.tolist(), found.size.tolist()) == (2, [1, 3], [1, 1])


def test_sizes_are_bytes():
    assert survey([Memory({"a": "é中😀"})], Split(0.0)).size.tolist() == [9]


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_left_empty(fraction):
    for n in range(2, 12):
        sides = split({f"{n}{i}": f"{i}" for i in range(n)}, fraction=fraction)
        assert min(map(len, sides)) == 1


def test_nothing_to_read_is_an_error():
    with pytest.raises(UserError, match=r"the data is empty: the sources hold no text \(2 empty documents\)"):
        survey([Memory({"a": "", "b": ""}), Memory({})], Split(0.1))


def test_one_document_cannot_be_split():
    with pytest.raises(UserError, match=r"the data is one document, .* set data.validation_fraction to 0"):
        survey([Memory({"a": "text"})], Split(0.1))
    assert survey([Memory({"a": "text"})], Split(0.0)).held_out.tolist() == [False]


# The tokenizer's sample


def test_a_sample_is_of_one_split_within_its_budget_and_always_the_same():
    sources = [Memory(MANY), Memory({f"long {i}": f"{i:04}" * 100 for i in range(100)})]
    found = survey(sources, Split(0.3))
    training, held_out = split(MANY, {f"long {i}": f"{i:04}" * 100 for i in range(100)})
    taken = list(sample(sources, found, 0.01))
    assert sum(map(len, taken)) == 10_000
    assert sum(text not in training.values() for text in taken) <= 1  # the last may be cut
    assert not set(taken) & set(held_out.values())
    assert any(len(text) == 400 for text in taken)
    assert any(len(text) < 10 for text in taken)
    assert list(sample(sources, found, 0.01)) == taken
    assert set(sample(sources, found, 1.0)) == set(training.values())
    assert set(sample(sources, found, 1.0, held_out=True)) == set(held_out.values())


def test_a_cut_text_stays_text():
    sources = [Memory({"a": "中" * 100})]
    assert list(sample(sources, survey(sources, Split(0.0)), 100e-6)) == ["中" * 33]


def test_pairs_are_told_apart_by_both_texts_and_split_by_the_first():
    pairs = [Document(f"f:{i}", f"in {i // 2}", f"out {i % 2}", named_by_place=True) for i in range(400)]
    extra = [Document("f:400", "in 0", "out 0", named_by_place=True), Document("f:401", "in", "", named_by_place=True)]
    found = survey([Memory(pairs + extra)], Split(0.3))
    assert (len(found.size), found.duplicates, found.empty) == (400, 1, 1)
    assert (found.held_out[::2] == found.held_out[1::2]).all()
    assert found.size[0] == len("in 0out 0")
    assert next(iter(sample([Memory(pairs)], found, 1.0))) in {"".join(pair.parts) for pair in pairs}


# Bad documents, and whole tasks


class Broken(Memory):
    def __getitem__(self, index: int) -> Document:
        if index % 3 == 0:
            raise BadRow(f"file:{index}: broken")
        return super().__getitem__(index)


def test_bad_documents_are_counted_and_the_first_are_named():
    sources = [Broken(MANY), Memory({"a": "another"})]
    with pytest.raises(
        UserError, match=r"^334 of 1,001 documents cannot be used:\n  file:0: broken\n(.*\n)*  and 329 more"
    ):
        survey(sources, Split(0.1))
    found = survey(sources, Split(0.1), skip_bad=True)
    assert (found.bad.count, found.bad.of, len(found.bad.first)) == (334, 1001, 5)
    assert len(found.size) == 667
    kept = [document.name for _, _, document in kept_documents(sources, found)]
    assert kept == [name for i, name in enumerate(MANY) if i % 3] + ["a"]
    with pytest.raises(UserError, match=r"no text \(0 empty documents, 1 bad ones, such as file:0: broken\)"):
        survey([Broken({"a": "a"})], Split(0.0), skip_bad=True)


def test_a_few_bad_documents_are_all_named():
    bad = BadRows(of=9).joined("one").joined("two")
    with pytest.raises(UserError) as error:
        bad.refuse()
    assert str(error.value).splitlines() == [
        "2 of 9 documents cannot be used:",
        "  one",
        "  two",
        "mend them or take them out, or leave them out by --skip-bad",
    ]
    BadRows(of=9).refuse()


def test_a_source_that_cannot_be_read_at_all_stops_it():
    class Gone(Memory):
        def __getitem__(self, index: int) -> Document:
            raise UserError("the file is gone")

    with pytest.raises(UserError, match="the file is gone"):
        survey([Gone(MANY)], Split(0.1), skip_bad=True)


def test_tasks_are_numbered_by_source_and_held_out_whole():
    first = [Document(f"a:{i}", f"text {i}", task="xy"[i % 2]) for i in range(100)]
    second = [Document(f"b:{i}", f"other {i}", task="x") for i in range(50)]
    found = survey([Memory(first), Memory(second)], Split(0.2, [(), ("x",)][::-1]), skip_bad=False)
    assert found.tasks == [(0, "x"), (0, "y"), (1, "x")]
    share = [found.held_out[found.task == t].mean() for t in range(3)]
    assert share[0] == 1
    assert 0 < share[1] < 0.5
    assert 0 < share[2] < 0.5
