"""Pairs of texts: what is read and what is written of each, by `seq2seq` and by `prefix`."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxllm.config import SourceConfig, UserError
from tests.data.batches import epoch, equal, joined, segments


@pytest.fixture
def write_pairs(tmp_path):
    def written(pairs: list[tuple[str, str]]) -> tuple[SourceConfig]:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in pairs))
        return (SourceConfig(kind="jsonl", path=str(path), field="x", target_field="y"),)

    return written


@pytest.fixture
def pairs(write_pairs) -> tuple[SourceConfig]:
    choose = np.random.default_rng(0)
    return write_pairs([("value " * n, "name " * m) for n, m in choose.integers(1, 20, (150, 2)).tolist()])


def test_the_prefix_of_a_pair_is_its_first_text_with_its_end(make, pairs):
    loader = make("prefix", batch_size=1, sources=pairs)
    for segment in segments(epoch(loader)):
        seen = sum(segment["prefix"])
        assert segment["tokens"][seen - 1] == 2
        assert 2 not in segment["tokens"][: seen - 1]
        assert sum(segment["weights"]) == len(segment["tokens"]) - seen + 1
        assert segment["targets"][-1] == 2


def test_the_decoder_reads_its_targets_one_place_later(make, pairs):
    for start in (None, 5):
        for segment in segments(make("seq2seq", start=start, sources=pairs).batch(2)):
            assert segment["tokens"] == [3 if start is None else start, *segment["targets"][:-1]]
            assert set(segment["weights"]) == {1.0}


@pytest.mark.parametrize("kind", ["seq2seq", "prefix"])
def test_a_row_does_not_depend_on_the_host_or_the_batch(make, pairs, kind):
    loader = make(kind, sources=pairs)
    whole = [loader.batch(k) for k in (2, 3)]
    assert equal(joined([loader.batch(3, rows=range(h, h + 2)) for h in (0, 2)]), whole[1])
    assert equal(make(kind, batch_size=8, sources=pairs).batch(1), joined(whole))
    assert loader.batch(0, rows=())["tokens"].shape == (0, 64)


def test_a_pair_is_read_by_the_encoder_and_written_by_the_decoder(make, pairs):
    loader = make("seq2seq", batch_size=1, sources=pairs, target_length=48)
    decode, found = loader.corpus.tokenizer.decode, Counter()
    for segment in segments(epoch(loader)):
        first, *read, end = segment["encoder_tokens"]
        assert (first, end, segment["targets"][-1]) == (1, 2, 2)
        found[decode(read), decode(segment["targets"])] += 1
    records = [json.loads(line) for line in Path(pairs[0].path).read_text().splitlines()]
    expected = Counter({(record["x"], record["y"]) for record in records})
    held_out = Counter(
        (decode(s["encoder_tokens"]), decode(s["targets"]))
        for s in segments(joined(list(loader.validation_batches(4))))
    )
    assert found + held_out == expected
    assert loader.packing_efficiency > 0.7


def test_a_few_pairs_that_are_too_long_are_left_out_and_counted(make, write_pairs):
    short = [(f"value {i}", "name") for i in range(300)]
    loader = make("seq2seq", sources=write_pairs([*short, ("value " * 99, "name"), ("value", "name " * 99)]))
    assert loader.left_out == 2
    assert sum(len(plan.starts) for plan in (*loader.plans, *loader.validation_plans)) == 300
    assert make("prefix", sources=write_pairs([*short, ("value", "name " * 99)])).left_out == 1


@pytest.mark.parametrize("kind", ["seq2seq", "prefix"])
def test_many_pairs_that_are_too_long_are_refused_with_what_would_hold_them(make, write_pairs, kind):
    short = [(f"value {i}", "name") for i in range(100)]
    sources = write_pairs([*short, *(("value " * (70 + i), "name " * 80) for i in range(9))])
    with pytest.raises(UserError, match=r"data\.sequence_length = 64.*: too short for 9 of 109 pairs") as error:
        make(kind, sources=sources, validation_fraction=0.0)
    words = str(error.value).split()
    named = {words[n - 1].split(".")[1]: int(words[n + 1]) for n, word in enumerate(words) if word == "=" and n > 12}
    assert make(kind, sources=sources, validation_fraction=0.0, **named).left_out == 0
    named["sequence_length"] -= 1
    assert make(kind, sources=sources, validation_fraction=0.0, **named).left_out == 1
