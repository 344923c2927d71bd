"""What a model reads of a row."""

from dataclasses import replace

import pytest

from jaxllm.config import UserError
from jaxllm.evaluation.prompts import Prompts
from jaxllm.evaluation.rows import Row

EXAMPLES = [
    Row("x:8", "a", "the fox", ("jumps",)),
    Row("x:9", "a", "the dog\n", ("is lazy", "sleeps"), ("is lazy", "runs"), 0),
]
ROW = Row("x:1", "a", "the quick", ("brown",), ("brown", "lazy dog", "<|end|>"))


def none(row):
    return []


def both(row):
    return EXAMPLES


def short(model, most):
    """The model, with other positions."""
    return replace(model, config=replace(model.config, model=replace(model.config.model, max_positions=most)))


def test_plain_text_has_examples_as_paragraphs(plain, tokenizer):
    model = short(plain, 200)
    assert Prompts(model, None, none).question(ROW, 1) == tokenizer.encode("the quick")
    text = "Be brief.\n\nthe fox jumps\n\nthe dog\nis lazy\n\nthe quick"
    assert Prompts(model, "Be brief.", both).question(ROW, 1) == tokenizer.encode(text)
    for request, choice in zip(Prompts(model, None, both).choices(ROW), ROW.choices, strict=True):
        before = "the fox jumps\n\nthe dog\nis lazy\n\nthe quick"
        assert request.context == tokenizer.encode(before)
        assert [*request.context, *request.continuation] == tokenizer.encode(f"{before} {choice}")
    said = Prompts(model, None, none).choices(replace(ROW, prompt="the quick\n"))[0]
    assert tokenizer.decode([*said.context, *said.continuation]) == "the quick\nbrown"


def test_a_model_that_begins_texts_begins_prompts(plain, tokenizer):
    config = replace(plain.config, tokenizer=replace(plain.config.tokenizer, begins_prompts=True))
    begins = replace(plain, config=config)
    assert Prompts(begins, None, none).question(ROW, 1) == [tokenizer.bos_id, *tokenizer.encode("the quick")]
    assert Prompts(begins, None, none).choices(ROW)[0].context == [tokenizer.bos_id, *tokenizer.encode("the quick")]
    assert begins.begin == [tokenizer.bos_id]


def test_a_conversation_has_examples_as_turns(talking, tokenizer):
    model = short(talking, 200)
    encode = tokenizer.encode_with_specials
    assert Prompts(model, None, none).question(ROW, 1) == encode("<|user|>the quick<|end|><|assistant|>")
    text = (
        "<|system|>Be brief.<|end|><|user|>the fox<|end|><|assistant|>jumps<|end|>"
        "<|user|>the dog\n<|end|><|assistant|>is lazy<|end|><|user|>the quick<|end|><|assistant|>"
    )
    assert Prompts(model, "Be brief.", both).question(ROW, 1) == encode(text)
    said = {"role": "user", "content": "the quick"}
    own = [
        {"role": "system", "content": "own"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    row = replace(ROW, prompt=(*own, said))
    turns = "<|system|>own<|end|><|user|>a<|end|><|assistant|>b<|end|><|user|>the quick<|end|><|assistant|>"
    assert Prompts(model, "Be brief.", none).question(row, 1) == encode(turns)


def test_a_choice_is_what_the_assistant_says_and_spells_no_special_token(talking, tokenizer):
    requests = Prompts(talking, None, none).choices(ROW)
    context = tokenizer.encode_with_specials("<|user|>the quick<|end|><|assistant|>")
    assert all(request.context == context for request in requests)
    assert [tokenizer.decode(request.continuation) for request in requests] == ["brown", "lazy dog", "<|end|>"]
    assert tokenizer.token_id("<|end|>") not in requests[2].continuation


def test_choices_alone_follow_the_token_that_begins_a_text(plain, tokenizer):
    prompts = Prompts(plain, None, none)
    requests = prompts.choices(ROW)
    alone = prompts.alone(requests)
    assert [request.context for request in alone] == [[tokenizer.bos_id]] * 3
    assert [request.continuation for request in alone] == [request.continuation for request in requests]


def test_what_is_too_long_loses_its_beginning_and_is_counted(plain, tokenizer):
    prompts = Prompts(plain, None, none)  # 64 positions
    long = replace(ROW, prompt="the quick brown fox " * 30)
    ids = tokenizer.encode(long.prompt)
    assert prompts.question(long, 11) == ids[-54:]
    assert prompts.question(long, 1000) == ids[-17:]
    assert prompts.cut == 2
    requests = prompts.choices(long)
    assert len({tuple(request.context) for request in requests}) == 1
    assert max(len(request.context) + len(request.continuation) - 1 for request in requests) == 64
    assert prompts.cut == 3
    with pytest.raises(UserError, match=r"x:1: a choice has no token, or more than the model reads \(64\)"):
        prompts.choices(replace(ROW, choices=("a", "zq" * 90)))


def test_parts_of_text_are_joined_where_there_is_no_template(plain, tokenizer):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "quick"}]
    row = replace(ROW, prompt=({"role": "user", "content": parts},))
    assert Prompts(plain, None, none).question(row, 1) == tokenizer.encode("the quick")
    row = replace(ROW, prompt=({"role": "user", "content": [*parts, {"type": "image", "image": "x"}]},))
    with pytest.raises(UserError, match="x:1: parts of a message that are no text"):
        Prompts(plain, None, none).question(row, 1)


def test_what_a_model_cannot_read_is_named(plain, talking):
    turns = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    with pytest.raises(UserError, match="x:1: a conversation of 2 messages, and the model has no chat template"):
        Prompts(plain, None, none).question(replace(ROW, prompt=turns), 1)
    with pytest.raises(UserError, match="x:1: chat template, line 1: I do"):
        Prompts(talking, None, none).question(replace(ROW, prompt="refuse"), 1)
    assert Prompts(plain, None, none).question(replace(ROW, prompt=turns[1:]), 1) == plain.tokenizer.encode("b")
