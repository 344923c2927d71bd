import contextlib
import dataclasses
import itertools
import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxllm.config import DataConfig, ObjectiveConfig, SourceConfig, TokenizerConfig, UserError
from jaxllm.data.corpus import Corpus, prepare_corpus
from jaxllm.data.loader import Batch, Loader, loader_speed
from jaxllm.data.mixture import FEW, shuffled
from tests.data.batches import equal


def pieces(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(inputs, targets) of each segment of each row."""
    found = []
    for tokens, targets, segments in zip(batch["tokens"], batch["targets"], batch["segments"], strict=True):
        for s in range(1, segments.max() + 1):
            found.append((tuple(tokens[segments == s].tolist()), tuple(targets[segments == s].tolist())))
    return found


def epoch(loader: Loader, rows: int) -> list[Batch]:
    """One row a batch: loaders of batch size 1 only."""
    return [loader.batch(k) for k in range(rows)]


def expected_pieces(corpus: Corpus, length: int) -> Counter:
    """The pieces of the training documents, cut one by one."""
    found = Counter()
    for documents in corpus.train:
        for a, b in itertools.pairwise(documents.starts):
            ids = documents.tokens[a:b].tolist()
            for i in range(0, len(ids) - 1, length):
                found[tuple(ids[i : i + length][: len(ids) - 1 - i]), tuple(ids[i + 1 : i + length + 1])] += 1
    return found


@pytest.fixture
def loader(corpus, data) -> Loader:
    return Loader(corpus, data, batch_size=4, seed=0)


# What a batch is


def test_arrays_have_the_stated_names_shapes_and_types(loader):
    batch = loader.batch(0)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "tokens": ((4, 64), "int32"),
        "targets": ((4, 64), "int32"),
        "segments": ((4, 64), "int32"),
        "positions": ((4, 64), "int32"),
        "weights": ((4, 64), "float32"),
    }


def test_positions_start_again_in_each_segment_and_padding_has_no_weight(loader):
    for k in range(10):
        batch = loader.batch(k)
        for row in range(4):
            segments, positions = batch["segments"][row], batch["positions"][row]
            filled = int((segments > 0).sum())
            assert (segments[:filled] > 0).all()  # padding is at the end
            assert set(np.diff(segments[:filled]).tolist()) <= {0, 1}
            assert segments[0] == 1
            for s in range(1, segments.max() + 1):
                assert positions[segments == s].tolist() == list(range((segments == s).sum()))
            assert batch["weights"][row].tolist() == [1.0] * filled + [0.0] * (64 - filled)
            for name in ("tokens", "targets"):
                assert (batch[name][row, filled:] == loader.corpus.tokenizer.pad_id).all()
            assert (positions[filled:] == 0).all()


def test_a_target_is_the_next_input_of_its_segment(loader):
    for k in range(10):
        for inputs, targets in pieces(loader.batch(k)):
            assert inputs[1:] == targets[:-1]


def test_no_segment_holds_two_documents(loader):
    bos, eos = loader.corpus.tokenizer.bos_id, loader.corpus.tokenizer.eos_id
    for k in range(10):
        for inputs, targets in pieces(loader.batch(k)):
            assert eos not in inputs
            assert eos not in targets[:-1]
            assert bos not in targets
            assert bos not in inputs[1:]


def test_one_epoch_is_every_piece_of_every_training_document_once(corpus, data):
    loader = Loader(corpus, data, batch_size=1, seed=5)
    rows = len(loader.plans[0])
    seen = Counter(piece for batch in epoch(loader, rows) for piece in pieces(batch))
    assert seen == expected_pieces(corpus, 64)


def test_each_epoch_has_its_own_order(corpus, data):
    loader = Loader(corpus, data, batch_size=1, seed=5)
    rows = len(loader.plans[0])
    first, second = ([pieces(loader.batch(e * rows + k)) for k in range(rows)] for e in (0, 1))
    assert first != second
    assert Counter(map(tuple, first)) == Counter(map(tuple, second))


@pytest.mark.parametrize("rows", [1, 2, 300, FEW - 1, FEW])
def test_rows_of_a_part_come_once_an_epoch_in_another_order_each(rows):
    found = shuffled(7, 7 + rows, seed=3)
    first, later = ([found[e * rows + n] for n in range(rows)] for e in (0, 5))
    assert sorted(first) == sorted(later) == list(range(7, 7 + rows))
    assert rows < 3 or first != later
    assert [shuffled(7, 7 + rows, seed=3)[5 * rows + n] for n in range(min(rows, 9))] == later[:9]


def test_concatenated_rows_are_one_segment_and_cover_the_stream(corpus, data):
    loader = Loader(corpus, dataclasses.replace(data, packing="concatenate"), batch_size=1, seed=0)
    tokens = corpus.train[0].tokens
    pairs = Counter()
    for batch in epoch(loader, len(loader.plans[0])):
        filled = int(batch["weights"].sum())
        assert (batch["segments"][0, :filled] == 1).all()
        assert batch["positions"][0, :filled].tolist() == list(range(filled))
        pairs.update(zip(batch["tokens"][0, :filled].tolist(), batch["targets"][0, :filled].tolist(), strict=True))
    assert pairs == Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


def test_efficiency_is_the_share_of_places_with_weight(corpus, data):
    loader = Loader(corpus, data, batch_size=1, seed=0)
    rows = len(loader.plans[0])
    assert loader.packing_efficiency == sum(int(b["weights"].sum()) for b in epoch(loader, rows)) / (rows * 64)
    assert loader.packing_efficiency > 0.9


# Batch k is a pure function of (configuration, seed, k)


def test_a_batch_does_not_depend_on_what_was_asked_before(corpus, data, loader):
    wanted = [7, 0, 300, 7, 41, 1, 10**9]
    first = {k: loader.batch(k) for k in wanted}
    random.Random(0).shuffle(wanted)
    other = Loader(corpus, data, batch_size=4, seed=0)
    assert all(equal(other.batch(k), first[k]) for k in wanted)


def test_the_seed_and_the_number_decide_the_batch(corpus, data, loader):
    other = Loader(corpus, data, batch_size=4, seed=1)
    assert not equal(loader.batch(0), other.batch(0))
    assert not equal(loader.batch(0), loader.batch(1))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_that_read_their_own_rows_have_the_batch_together(loader, hosts):
    size = 4 // hosts
    parts = [loader.batch(3, rows=range(h * size, (h + 1) * size)) for h in range(hosts)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert equal(joined, loader.batch(3))


def test_a_host_reads_only_its_rows(loader, monkeypatch):
    read = []
    place = loader._place
    monkeypatch.setattr(loader, "_place", lambda row: read.append(row) or place(row))
    loader.batch(3, rows=range(1, 3))
    assert len(read) == 2


def test_the_batch_size_regroups_the_same_rows(corpus, data, loader):
    twice = Loader(corpus, data, batch_size=8, seed=0)
    both = [loader.batch(6), loader.batch(7)]
    assert equal({name: np.concatenate([b[name] for b in both]) for name in both[0]}, twice.batch(3))


# Mixtures


@pytest.fixture
def mixture(tmp_path, model_path):
    """Two sources of very different sizes, and their corpus."""
    (tmp_path / "small.jsonl").write_text("".join(f'{{"text": "small {i} total"}}\n' for i in range(30)))
    (tmp_path / "large.jsonl").write_text("".join(f'{{"text": "large {i} total"}}\n' for i in range(900)))

    def make(*weights: float, **fields):
        sources = tuple(
            SourceConfig(kind="jsonl", path=str(tmp_path / name), weight=weight)
            for name, weight in zip(("small.jsonl", "large.jsonl"), weights, strict=True)
        )
        data = DataConfig(sources=sources, sequence_length=32, **fields)
        return prepare_corpus(data, TokenizerConfig(path=str(model_path))), data

    return make


def counted_sources(loader: Loader, batches: int) -> Counter:
    return Counter(source_of(name) for k in range(batches) for name in loader.documents(k))


def source_of(name: str) -> str:
    path, _, place = name.partition(": ")
    assert place.startswith(f"{Path(path).name}:")
    return Path(path).stem


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((3, 1), 0.75), ((0.1, 0.3), 0.25), ((0, 2), 0)])
def test_rows_are_shared_by_weight_whatever_the_sizes(mixture, weights, share):
    loader = Loader(*mixture(*weights), batch_size=1, seed=0)
    from_small = [source_of(loader.documents(k)[0]) == "small" for k in range(400)]
    assert sum(from_small) == 400 * share
    for start in range(0, 400, 20):  # and evenly at any time
        assert abs(sum(from_small[start : start + 20]) - 20 * share) <= 1


def test_a_source_that_is_read_many_times_gives_each_row_once_an_epoch(mixture):
    corpus, data = mixture(1, 1)
    loader = Loader(corpus, data, batch_size=1, seed=0)
    rows = len(loader.plans[0])
    small = [tuple(n) for n in map(loader.documents, range(6 * rows)) if source_of(n[0]) == "small"]
    assert len(small) == 3 * rows
    for e in range(3):
        assert len(set(small[e * rows : (e + 1) * rows])) == rows


def test_the_held_out_set_does_not_follow_the_weights(mixture):
    counts = {mixture(*weights)[0].held_out_bytes for weights in ((1, 1), (0, 1), (5, 0.1))}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ((-1, 1), r"data\.sources\.0 \(.*small\.jsonl\): weight is -1; expected 0 or more"),
        ((0, 0), r"every weight in data\.sources is 0; give one source a positive weight"),
    ],
)
def test_weights_that_will_not_do_are_named(mixture, weights, complaint):
    with pytest.raises(UserError, match=complaint):
        Loader(*mixture(*weights), batch_size=1, seed=0)


def test_a_source_whose_documents_all_repeat_another_is_named(mixture, tmp_path):
    (tmp_path / "large.jsonl").write_text((tmp_path / "small.jsonl").read_text())
    with pytest.raises(
        UserError, match=r"data\.sources\.1 \(.*large\.jsonl\) has no training document: all are held out"
    ):
        Loader(*mixture(1, 1), batch_size=1, seed=0)
    assert counted_sources(Loader(*mixture(1, 0), batch_size=1, seed=0), 5).keys() == {"small"}


# Names


def test_the_documents_of_a_batch_are_those_whose_tokens_it_holds(loader):
    corpus = loader.corpus
    (documents,) = corpus.train
    contents = {
        documents.name(d): documents.tokens[a:b].tolist()
        for d, (a, b) in enumerate(itertools.pairwise(documents.starts))
    }
    for k in range(5):
        names = loader.documents(k)
        for inputs, targets in pieces(loader.batch(k)):
            ids = [*inputs, targets[-1]]
            assert any(contents[name][i : i + len(ids)] == ids for name in names for i in range(len(contents[name])))
        assert len(names) <= len(pieces(loader.batch(k)))
        assert loader.documents(k, rows=range(1)) == names[: len(loader.documents(k, rows=range(1)))]


def test_a_concatenated_row_names_all_documents_that_it_touches(corpus, data):
    wide = dataclasses.replace(data, packing="concatenate", sequence_length=100_000)
    loader = Loader(corpus, wide, batch_size=1, seed=0)
    (documents,) = corpus.train
    assert loader.documents(0) == [documents.name(d) for d in range(len(documents))]


# The held-out set


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_held_out_pair_is_given_once_whatever_the_batch_size(corpus, data, packing, batch_size):
    loader = Loader(corpus, dataclasses.replace(data, packing=packing), batch_size=4, seed=0)
    batches = list(loader.validation_batches(batch_size))
    assert {b["tokens"].shape for b in batches} == {(batch_size, 64)}
    (documents,) = corpus.validation
    ends = len(documents) if packing == "documents" else 1
    assert sum(int(b["weights"].sum()) for b in batches) == len(documents.tokens) - ends
    targets = Counter(itertools.chain.from_iterable(b["targets"][b["weights"] > 0].tolist() for b in batches))
    expected = Counter(documents.tokens.tolist())
    expected[corpus.tokenizer.bos_id] -= ends
    assert targets == +expected


def test_held_out_batches_are_always_the_same_and_can_be_cut_by_rows(corpus, data):
    first = list(Loader(corpus, data, batch_size=4, seed=0).validation_batches(4))
    second = Loader(corpus, data, batch_size=2, seed=9)
    assert all(map(equal, first, second.validation_batches(4)))
    halves = [list(second.validation_batches(4, rows=range(h, h + 2))) for h in (0, 2)]
    for whole, a, b in zip(first, *halves, strict=True):
        assert equal(whole, {name: np.concatenate([a[name], b[name]]) for name in a})


def test_no_held_out_text_is_trained_on(corpus, data, loader):
    trained = {name for k in range(200) for name in loader.documents(k)}
    assert trained.isdisjoint({d.name(i) for d in corpus.validation for i in range(len(d))})


def test_without_a_held_out_set_there_are_no_batches(data, model_path):
    none = dataclasses.replace(data, validation_fraction=0.0)
    loader = Loader(prepare_corpus(none, TokenizerConfig(path=str(model_path))), none, batch_size=4, seed=0)
    assert list(loader.validation_batches(4)) == []


# Reading ahead


def test_iteration_can_start_anywhere_and_gives_the_batches_in_order(loader):
    with contextlib.closing(loader.iterate(start=11)) as batches:
        for k, batch in zip(range(11, 20), batches, strict=False):
            assert equal(batch, loader.batch(k))
    with contextlib.closing(loader.iterate(5, rows=range(1, 3))) as batches:
        assert equal(next(batches), loader.batch(5, rows=range(1, 3)))


def test_closing_ends_the_background_thread(loader):
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("loader")]

    batches = loader.iterate()
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert threads() == []

    def consumer_that_fails():
        with contextlib.closing(loader.iterate()) as batches:
            next(batches)
            raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer"):
        consumer_that_fails()
    assert threads() == []


def test_no_more_than_the_stated_number_of_batches_is_made_ahead(loader, monkeypatch):
    made = []
    batch = loader.batch
    monkeypatch.setattr(loader, "batch", lambda k, rows: made.append(k) or batch(k, rows))
    with contextlib.closing(loader.iterate(ahead=3)) as batches:
        for _ in range(5):
            next(batches)
    assert made == list(range(len(made)))
    assert len(made) <= 5 + 3


def test_an_error_in_the_background_reaches_the_consumer(loader, monkeypatch):
    def fail(k, rows):
        raise OSError(f"batch {k}")

    monkeypatch.setattr(loader, "batch", fail)
    with pytest.raises(OSError, match="batch 4"):
        next(loader.iterate(4))


def test_the_speed_counts_the_places_that_were_filled(loader, monkeypatch):
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr("jaxllm.data.loader.time.perf_counter", lambda: next(clock))
    assert loader_speed(loader, seconds=2.0) == 4 * (4 * 64) / 2.0


@pytest.mark.parametrize("kind", ["causal", "prefix"])
def test_virtual_tokens_come_before_each_piece_and_are_no_targets(corpus, data, kind):
    """And all other places are what they are without them, in pieces that are shorter by as many."""
    with_them = Loader(corpus, data, 4, 0, ObjectiveConfig(kind=kind), virtual=range(900, 903))
    batch = with_them.batch(0)
    is_virtual = batch["tokens"] >= 900
    is_first = (batch["positions"] < 3) & (batch["segments"] > 0)
    np.testing.assert_array_equal(is_virtual, is_first)
    np.testing.assert_array_equal(batch["tokens"][is_virtual], 900 + batch["positions"][is_virtual])
    assert not batch["weights"][is_virtual].any()
    for tokens, targets, segments in zip(*(batch[name] for name in ("tokens", "targets", "segments")), strict=True):
        for segment in range(1, segments.max() + 1):
            own, told = tokens[segments == segment][3:], targets[segments == segment][3:]
            assert len(own) <= data.sequence_length - 3
            np.testing.assert_array_equal(own[1:], told[:-1])
    assert sum(plan.pairs for plan in with_them.plans) == sum(plan.pairs for plan in Loader(corpus, data, 4, 0).plans)
