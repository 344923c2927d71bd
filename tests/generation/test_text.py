import pytest

from jaxllm.generation.text import TextStream


def stream(tokenizer, ids, prompt=(), limit=1000, stop=()):
    """The stream after `ids`, and the pieces that came."""
    row = TextStream(tokenizer, prompt, limit, stop)
    return row, [row.feed(i) for i in ids]


@pytest.mark.parametrize("text", ["the quick brown fox", "naïve 漢字 🦊 fox", "  two  spaces\n\tthere", "🦊"])
def test_pieces_join_to_the_text_and_hold_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    row, pieces = stream(tokenizer, [*ids, tokenizer.eos_id])
    assert "".join(pieces) == row.text == text
    assert row.finish == "eos"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(ids) > len(text.split())


def test_any_of_the_tokens_that_end_a_text_ends_it_and_no_other(tokenizer):
    ids, end = tokenizer.encode("fox"), tokenizer.token_id("<|end|>")
    for last in (7, end):
        row = TextStream(tokenizer, (), 100, ends={7, end})
        for i in [tokenizer.eos_id, *ids, last, *ids]:
            row.feed(i)
        assert (row.text, row.finish, row.tokens) == ("fox", "eos", [tokenizer.eos_id, *ids, last])


def test_text_comes_as_soon_as_it_is_final(tokenizer):
    _, pieces = stream(tokenizer, tokenizer.encode("fox 🦊 fox"))
    assert pieces.index("🦊") - max(i for i, piece in enumerate(pieces[:-1]) if piece and i < pieces.index("🦊")) == 4
    assert "".join(pieces) == "fox 🦊 fox"


def test_a_character_cut_off_by_the_end_is_given_as_its_replacement(tokenizer):
    ids = tokenizer.encode("a🦊")[:-1]
    row, pieces = stream(tokenizer, ids, limit=len(ids))
    assert row.text == "".join(pieces) == tokenizer.decode(ids)
    assert row.text.startswith("a\ufffd")


def test_a_continuation_keeps_its_leading_space(tokenizer):
    prompt, ids = tokenizer.encode("the quick"), tokenizer.encode("the quick brown")
    assert ids[: len(prompt)] == prompt
    row, _ = stream(tokenizer, ids[len(prompt) :], prompt=[tokenizer.bos_id, *prompt])
    assert row.text == " brown"


@pytest.mark.parametrize("stop", ["jumps", "x ju", "umps over", " ", "t", "the quick brown fox jumps over", "dog"])
def test_a_stop_string_ends_the_text_before_itself_across_tokens(tokenizer, stop):
    text = "the quick brown fox jumps over the lazy dog"
    row, pieces = stream(tokenizer, tokenizer.encode(text), stop=[stop])
    assert row.finish == "stop"
    assert "".join(pieces) == row.text == text[: text.index(stop)]
    assert stop in tokenizer.decode(row.tokens)
    assert stop not in tokenizer.decode(row.tokens[:-1])


def test_the_first_stop_string_in_the_text_wins(tokenizer):
    row, _ = stream(tokenizer, tokenizer.encode("the quick brown fox"), stop=["fox", "brown f", "zebra"])
    assert row.text == "the quick "


def test_a_stop_string_that_begins_within_a_false_start_is_found(tokenizer):
    row, pieces = stream(tokenizer, tokenizer.encode("xaaaab"), stop=["aaab"])
    assert (row.text, row.finish) == ("xa", "stop")
    assert "".join(pieces) == "xa"


def test_what_only_looked_like_a_stop_string_is_given_when_it_is_none(tokenizer):
    ids = tokenizer.encode("the quick brown")
    row, pieces = stream(tokenizer, ids, stop=["quick brown fox"])
    assert "".join(pieces) == "the "
    assert row.feed(tokenizer.eos_id) == "quick brown"
    row, pieces = stream(tokenizer, ids, stop=["quick brown fox"], limit=len(ids))
    assert (row.text, row.finish) == ("the quick brown", "length")


def test_the_last_token_that_is_allowed_may_complete_the_stop_string(tokenizer):
    ids = tokenizer.encode("the quick")
    row, _ = stream(tokenizer, ids, stop=["k"], limit=len(ids))
    assert (row.text, row.finish) == ("the quic", "stop")


def test_after_its_end_a_row_takes_nothing_more(tokenizer):
    row, pieces = stream(tokenizer, [tokenizer.eos_id, *tokenizer.encode("fox")])
    assert (row.text, row.finish, row.tokens) == ("", "eos", [tokenizer.eos_id])
    assert not any(pieces)
