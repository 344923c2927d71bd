"""The rows of each objective, as the loader gives them."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from jaxllm.config import SourceConfig, UserError
from jaxllm.data.corpus import Documents
from jaxllm.data.loader import Batch, Loader
from tests.data.batches import SENTINELS, epoch, equal, joined, segments

FIRST = 10
"""The id of the first sentinel; the mask stands before it."""

DENOISED = ("span_corruption", "infilling")
UNPAIRED = ("causal", "prefix", "masked", *DENOISED)


def text_of(documents: Documents) -> Counter:
    """How often each token is there, begins and ends not counted."""
    return Counter(i for i in documents.tokens.tolist() if i > 2)


def text_in(loader: Loader, batch: Batch) -> Counter:
    """The same of the text that the segments of a batch give back."""
    found = Counter()
    for segment in segments(batch):
        if loader.examples.objective.kind == "span_corruption":
            tokens = restored(segment)
        else:
            tokens = segment["targets"]
        found.update(i for i in tokens if i > 2)
    return found


def restored(segment: dict[str, list]) -> list[int]:
    read, targets = segment["encoder_tokens"], segment["targets"]
    places = [n for n, i in enumerate(targets) if FIRST <= i < FIRST + 40]
    hidden = {targets[a]: targets[a + 1 : b] for a, b in zip(places, [*places[1:], -1], strict=True)}
    return [token for i in read for token in hidden.get(i, [i])]


# What a batch is


def test_arrays_have_the_stated_names_shapes_and_types(make):
    side = dict.fromkeys(("tokens", "targets", "segments", "positions"), "int32") | {"weights": "float32"}
    encoder = dict.fromkeys(("encoder_tokens", "encoder_segments", "encoder_positions"), "int32")
    for kind, places in (("causal", 64), ("prefix", 64), ("masked", 64), ("span_corruption", 16), ("infilling", 80)):
        expected = {name: ((4, places), dtype) for name, dtype in side.items()}
        expected |= {"prefix": ((4, 64), "bool")} if kind == "prefix" else {}
        expected |= {name: ((4, 64), dtype) for name, dtype in encoder.items()} if kind in DENOISED else {}
        loader = make(kind)
        assert {name: (x.shape, x.dtype.name) for name, x in loader.batch(0).items()} == expected
        assert {name: (4, x.shape[1]) for name, x in loader.batch(0, rows=()).items()} == {
            name: shape for name, (shape, _) in expected.items()
        }


@pytest.mark.parametrize("kind", UNPAIRED)
@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_positions_start_again_in_each_segment_and_padding_is_at_the_end(make, kind, packing):
    batch = epoch(make(kind, batch_size=1, packing=packing))
    for prefix in ("", "encoder_") if kind in DENOISED else ("",):
        for tokens, numbers, positions in zip(
            *(batch[f"{prefix}{name}"] for name in ("tokens", "segments", "positions")), strict=True
        ):
            filled = int((numbers > 0).sum())
            assert (numbers[:filled] > 0).all()
            assert (positions[filled:] == 0).all()
            assert (tokens[filled:] == 3).all()
            for s in range(1, numbers.max() + 1):
                assert positions[numbers == s].tolist() == list(range((numbers == s).sum()))
    assert (batch["weights"][batch["segments"] == 0] == 0).all()


@pytest.mark.parametrize("kind", ["masked", *DENOISED])
@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_one_epoch_gives_all_text_back(make, kind, packing):
    loader = make(kind, batch_size=1, packing=packing)
    assert text_in(loader, epoch(loader)) == text_of(loader.corpus.train[0])
    held_out = joined(list(loader.validation_batches(3)))
    assert text_in(loader, held_out) == text_of(loader.corpus.validation[0])


@pytest.mark.parametrize("kind", ["masked", *DENOISED])
def test_each_piece_that_is_read_has_a_begin_and_an_end(make, kind):
    name = "encoder_tokens" if kind in DENOISED else "tokens"
    for segment in segments(make(kind, packing="concatenate").batch(0)):
        first, *inner, last = segment[name]
        assert (first, last) == (1, 2)
        assert {1, 2}.isdisjoint(inner)
        assert segment["targets"][-1] == 2


@pytest.mark.parametrize("kind", UNPAIRED)
def test_efficiency_is_the_share_of_places_that_are_filled(make, kind):
    loader = make(kind, batch_size=1)
    batch = epoch(loader)
    numbers = [x for name, x in batch.items() if name.endswith("segments")]
    assert loader.packing_efficiency == sum((x > 0).sum() for x in numbers) / sum(x.size for x in numbers)
    assert loader.packing_efficiency > 0.9
    assert loader.left_out == 0


def test_rows_of_long_text_are_nearly_full_on_both_sides(make):
    for kind in DENOISED:
        batch = epoch(make(kind, batch_size=1, packing="concatenate", sequence_length=128))
        assert (batch["encoder_segments"] > 0).mean() > 0.96
        assert (batch["segments"] > 0).mean() > 0.85


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_window_names_the_documents_whose_tokens_it_holds_and_no_other(make, kind):
    loader = make(kind, batch_size=1, packing="concatenate", sequence_length=16)
    (documents,), (plan,) = loader.corpus.train, loader.plans
    for k in range(len(plan)):
        ((start, length),) = plan.row(int(loader._rows[k]))
        inside = range(start, start + length + (kind == "causal"))
        bounds = enumerate(itertools.pairwise(documents.starts.tolist()))
        touched = [d for d, (first, stop) in bounds if first < inside.stop and inside.start < stop]
        assert loader.documents(k) == [documents.name(d) for d in touched]


# Noise follows from (configuration, seed, k, row) alone


@pytest.mark.parametrize("kind", UNPAIRED)
def test_a_row_does_not_depend_on_the_host_the_batch_or_what_was_asked_before(make, kind):
    loader = make(kind)
    whole = [loader.batch(k) for k in (6, 7)]
    for size in (1, 2):
        parts = [loader.batch(7, rows=range(h, h + size)) for h in range(0, 4, size)]
        assert equal(joined(parts), whole[1])
    assert equal(loader.batch(6), whole[0])
    assert equal(make(kind, batch_size=8).batch(3), joined(whole))


@pytest.mark.parametrize("kind", ["prefix", "masked", *DENOISED])
def test_noise_is_new_in_each_epoch_and_for_each_seed(make, kind):
    fields = {"batch_size": 1, "packing": "concatenate", "sequence_length": 4096, "mean_span": 20.0}
    loader = make(kind, **fields)
    rows = len(loader.plans[0])
    assert rows <= 3
    seen = [loader.batch(k) for k in range(3 * rows)] + [make(kind, seed=7, **fields).batch(0)]
    assert all(not equal(a, b) for n, a in enumerate(seen) for b in seen[:n])


@pytest.mark.parametrize("kind", UNPAIRED)
def test_the_noise_of_held_out_rows_is_always_the_same(make, kind):
    first = list(make(kind, batch_size=4, seed=0).validation_batches(4))
    second = make(kind, batch_size=2, seed=9)
    assert all(map(equal, first, second.validation_batches(4)))
    assert all(map(equal, first, second.validation_batches(4)))
    halves = [list(second.validation_batches(4, rows=range(h, h + 2))) for h in (0, 2)]
    assert all(equal(whole, joined([a, b])) for whole, a, b in zip(first, *halves, strict=True))


# Masked


def test_masked_targets_are_the_tokens_of_the_same_places(make):
    loader = make("masked", batch_size=1, whole_words=False)
    batch = epoch(loader)
    told, same = batch["weights"] > 0, batch["tokens"] == batch["targets"]
    assert same[~told].all()
    assert told.sum() / (batch["targets"] > 9).sum() == pytest.approx(0.15, abs=0.005)
    assert (batch["targets"][told] >= FIRST + 40).all()
    assert np.isin(batch["tokens"][told & ~same], [9, *range(FIRST + 40, 450)]).all()
    assert (batch["tokens"][told] == 9).mean() == pytest.approx(0.8, abs=0.03)


def test_words_are_masked_whole(make):
    loader = make("masked", whole_words=True)
    starts = loader.corpus.tokenizer.word_starts()
    several = 0
    for k in range(20):
        for segment in segments(loader.batch(k)):
            words: list[list[float]] = []
            for i, weight in zip(segment["targets"][1:-1], segment["weights"][1:-1], strict=True):
                if starts[i] or not words:
                    words.append([])
                words[-1].append(weight)
            assert all(len(set(word)) == 1 for word in words)
            several += sum(len(word) > 1 and word[0] > 0 for word in words)
            assert segment["weights"][0] == segment["weights"][-1] == 0
    assert several > 100


# Prefix


def test_a_prefix_is_drawn_uniformly_and_only_what_comes_after_it_is_told(make):
    loader, causal = make("prefix"), make("causal")
    shares = []
    for k in range(60):
        batch, plain = loader.batch(k), causal.batch(k)
        assert all(np.array_equal(batch[name], plain[name]) for name in ("tokens", "targets", "segments", "positions"))
        for segment in segments(batch):
            seen, length = sum(segment["prefix"]), len(segment["tokens"])
            assert segment["prefix"] == [True] * seen + [False] * (length - seen)
            assert segment["weights"] == [0] * (seen - 1) + [1] * (length - seen + 1)
            assert 1 <= seen <= length
            if length == 64:
                shares.append(seen / length)
    assert np.quantile(shares, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.1)


# Encoder and decoder


@pytest.mark.parametrize("kind", DENOISED)
@pytest.mark.parametrize("start", [None, 5])
def test_the_decoder_reads_its_targets_one_place_later(make, kind, start):
    for segment in segments(make(kind, start=start).batch(2)):
        assert segment["tokens"] == [3 if start is None else start, *segment["targets"][:-1]]
        assert set(segment["weights"]) == {1.0}


@pytest.mark.parametrize("kind", DENOISED)
def test_rows_of_many_tiny_pieces_do_not_overflow(make, tmp_path, kind):
    tiny = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("qxzjkvwy", repeat=n)]
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny))
    loader = make(kind, batch_size=1, sources=(SourceConfig(kind="jsonl", path=str(tmp_path / "tiny.jsonl")),))
    assert set(loader.plans[0].lengths.tolist()) == {1, 2, 3}
    batch = epoch(loader)
    assert text_in(loader, batch) == text_of(loader.corpus.train[0])
    full = [(batch[name] > 0).mean() for name in ("segments", "encoder_segments")]
    assert max(full) > 0.8


def test_more_room_for_the_decoder_takes_more_tiny_pieces(make, tmp_path):
    lines = (json.dumps({"text": f"a{i}"}) for i in range(300))
    (tmp_path / "tiny.jsonl").write_text("\n".join(lines))
    sources = (SourceConfig(kind="jsonl", path=str(tmp_path / "tiny.jsonl")),)
    few, many = (make("span_corruption", sources=sources, target_length=n) for n in (None, 64))
    assert many.batch(0)["tokens"].shape == (4, 64)
    assert len(many.plans[0]) < len(few.plans[0]) / 2


# Tokenizers


@pytest.fixture
def like_t5(tmp_path) -> Path:
    """As T5's: no token that begins a text, and sentinels whose ids fall."""
    names = ["<pad>", "</s>", "<unk>", *"abcdefghij", *reversed(SENTINELS[:5])]
    model = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["<pad>", "</s>", "<unk>", *SENTINELS[:5]])
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_rows_for_t5_are_as_the_published_code_makes_them(make, like_t5, tmp_path):
    lines = [" ".join(np.random.default_rng(i).choice(list("abcdefghij"), 20 + i)) for i in range(30)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    sources = (SourceConfig(kind="jsonl", path=str(tmp_path / "text.jsonl")),)
    loader = make("span_corruption", path=like_t5, sources=sources)
    for segment in segments(loader.batch(0)):
        read, targets = segment["encoder_tokens"], segment["targets"]
        assert (read[-1], targets[-1], segment["tokens"][0]) == (1, 1, 0)
        assert read.count(1) == 1
        sentinels = [i for i in read if i >= 13]
        assert sentinels == [i for i in targets if i >= 13] == list(range(17, 17 - len(sentinels), -1))
        assert read[0] < 13 <= targets[0]


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (
            "masked",
            {},
            r"objective\.kind = 'masked' needs <mask> or \[MASK\], which the tokenizer '.*tiny\.model' does",
        ),
        (
            "infilling",
            {},
            r"'infilling' needs <mask> or \[MASK\], .* a trained one has those that tokenizer\.extra_tok",
        ),
        ("span_corruption", {}, r"'span_corruption' needs <extra_id_0> to <extra_id_2>, which the tokenizer"),
        ("span_corruption", {"sequence_length": 5}, r"'span_corruption' needs <extra_id_0>, which the tokenizer"),
    ],
)
def test_tokens_that_are_missing_are_named_with_what_would_do(make, model_path, kind, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        make(kind, path=model_path, **fields)


def test_too_few_sentinels_are_missing_ones(make):
    with pytest.raises(UserError, match="needs <extra_id_0> to <extra_id_56>, which the tokenizer"):
        make("span_corruption", sequence_length=1024)


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        ("masked", {"sequence_length": 2}, "data.sequence_length = 2: a row has a begin, text and an end; 3 would do"),
        ("infilling", {"sequence_length": 3}, "data.sequence_length = 3, with 3 places .* does not hold two tokens"),
        ("infilling", {"target_length": 2}, "data.sequence_length = 64, with 2 places .* does not hold two tokens"),
    ],
)
def test_rows_that_are_too_short_are_refused(make, kind, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        make(kind, **fields)


def test_a_vocabulary_without_words_cannot_mask_them(make, like_t5, tmp_path):
    model = tokenizers.Tokenizer.from_file(str(like_t5))
    model.add_special_tokens(["<mask>"])
    model.save(str(like_t5))
    with pytest.raises(UserError, match=r"objective\.whole_words = True: the tokenizer '.*' does not tell where words"):
        make("masked", path=like_t5, whole_words=True)
