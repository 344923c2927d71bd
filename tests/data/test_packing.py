import itertools

import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.data.corpus import Documents
from jaxllm.data.packing import Packing, corpus_plans, pack, plan_pairs


def best_fit_decreasing(lengths: list[int], size: int) -> int:
    """The rows of the plain algorithm, piece by piece."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in rooms if r >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else size) - length)
    return len(rooms)


def stream(sizes: list[int]) -> Documents:
    """Documents of the given numbers of tokens; each token is its own place in the stream."""
    starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    index = np.stack([starts, 0 * starts, 0 * starts], axis=1)
    return Documents(tokens=np.arange(starts[-1]), index=index, names=np.empty(0, np.uint8))


SIZES = {
    "one": [7],
    "short": [2, 3, 4, 2, 5, 3] * 9,
    "long": [200, 3, 64, 65, 66, 17, 130, 2],
    "random": np.random.default_rng(1).integers(2, 90, 300).tolist(),
    "none": [],
}


@pytest.mark.parametrize("seed", range(8))
def test_packing_fills_as_few_rows_as_plain_best_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 60))
    lengths = rng.integers(1, size + 1, int(rng.integers(1, 400)))
    row_starts, order = pack(lengths, size)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert row_starts[0] == 0
    assert row_starts[-1] == len(lengths)
    rows = [lengths[order[a:b]].sum() for a, b in itertools.pairwise(row_starts)]
    assert max(rows) <= size
    assert min(rows) > 0
    assert len(rows) == best_fit_decreasing(lengths.tolist(), size)


def test_a_million_pieces_are_packed_tightly():
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 150, 1_000_000), 512)
    row_starts, order = pack(lengths, 512)
    assert np.array_equal(np.sort(order), np.arange(len(lengths)))
    filled = np.add.reduceat(lengths[order], row_starts[:-1])
    assert filled.max() <= 512
    assert filled.sum() / (512 * len(filled)) > 0.999


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_are_limited_in_two_ways_are_nearly_full_in_one_of_them(seed):
    rng, room = np.random.default_rng(seed), np.array([120, 50])
    sizes = np.minimum(1 + rng.lognormal(np.log(room / [10, 6]), 0.7, (3000, 2)).astype(int), room)
    row_starts, order = pack(sizes, tuple(room.tolist()))
    assert np.array_equal(np.sort(order), np.arange(len(sizes)))
    filled = np.add.reduceat(sizes[order], row_starts[:-1])
    assert (filled <= room).all()
    assert len(filled) < 1.06 * (sizes.sum(axis=0) / room).max()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("length", [1, 8, 64])
def test_every_pair_of_every_document_is_in_one_piece(sizes, length):
    documents = stream(sizes)
    plan = plan_pairs(documents, length, "documents")
    seen = [start + i for row in range(len(plan)) for start, n in plan.row(row) for i in range(n)]
    # The last token of a document is no input: what follows it is another document.
    expected = set(range(len(documents.tokens))) - set((documents.starts[1:] - 1).tolist())
    assert len(seen) == len(set(seen)) == plan.pairs
    assert set(seen) == expected
    assert all(sum(n for _, n in plan.row(row)) <= length for row in range(len(plan)))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("length", [1, 8, 64])
def test_a_document_is_cut_only_where_it_must_be(sizes, length):
    plan = plan_pairs(stream(sizes), length, "documents")
    assert len(plan.starts) == sum(-(-(n - 1) // length) for n in sizes)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_concatenated_rows_are_windows_of_one_stream(sizes):
    documents = stream(sizes)
    plan = plan_pairs(documents, 8, "concatenate")
    pairs = max(len(documents.tokens) - 1, 0)
    assert plan.pairs == pairs
    assert len(plan) == len(plan.starts) == -(-pairs // 8)
    assert sorted(plan.starts.tolist()) == list(range(0, pairs, 8))
    assert all(n == min(8, pairs - start) for row in range(len(plan)) for start, n in plan.row(row))


def test_the_first_rows_are_a_fair_sample():
    plan = plan_pairs(stream([500] * 100), 8, "documents")
    first = [start // 500 for row in range(len(plan) // 20) for start, _ in plan.row(row)]
    assert len(set(first)) > 60


def test_plans_are_kept_in_the_cache_by_corpus_and_key(corpus):
    def plans(length: int, packing: Packing):
        return corpus_plans(corpus, [length, packing], lambda documents: plan_pairs(documents, length, packing))

    (made,), (held_out,) = plans(64, "documents")
    (again,), (held_out_again,) = corpus_plans(corpus, [64, "documents"], lambda _: pytest.fail("planned again"))
    for a, b in ((made, again), (held_out, held_out_again)):
        assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("row_starts", "starts", "lengths"))
    plans(32, "documents")
    plans(64, "concatenate")
    kept = [p for p in (corpus.root / "plans").iterdir() if p.is_dir()]
    assert len(kept) == 3


def test_a_damaged_plan_is_found(corpus):
    corpus_plans(corpus, [64], lambda documents: plan_pairs(documents, 64, "documents"))
    (path,) = corpus.root.glob("plans/*/validation.starts.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"the data cache '.*plans/\w+' is damaged: 'validation\.starts\.npy' has"):
        corpus_plans(corpus, [64], lambda _: pytest.fail("planned again"))
