"""Records of each format as conversations, and what is wrong with those that are none."""

import datetime
import json

import pytest

from jaxllm.config import SourceConfig
from jaxllm.data.conversations import conversation, said
from jaxllm.data.document import BadRow, Chat


def read(fields, kind="auto", **source):
    return conversation(fields, SourceConfig(kind="jsonl", path="x", format=kind, **source), "a.jsonl:7")


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


ASKED = turns("one", "two")
DEEP: dict = {}
for _ in range(2000):
    DEEP = {"of": [DEEP]}
EMPTY = [{"type": "text", "text": ""}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("kind", "fields", "messages"),
    [
        ("messages", {"messages": ASKED}, ASKED),
        ("prompt_completion", {"prompt": "one", "completion": "two"}, ASKED),
        (
            "prompt_completion",
            {"prompt": [{**turn, "weight": None} for turn in turns("a", "b", "one")], "completion": ASKED[1:]},
            [*turns("a"), {"role": "assistant", "content": "b", "weight": 0}, *turns("one"), ASKED[1]],
        ),
        (
            "prompt_completion",
            {
                "prompt": [*turns("a"), {"role": "assistant", "content": "b", "weight": 1}],
                "completion": turns("c", "d"),
            },
            [*turns("a"), {"role": "assistant", "content": "b", "weight": 1}, *turns("c", "d")],
        ),
        ("alpaca", {"instruction": "one", "input": "", "output": "two"}, ASKED),
        ("alpaca", {"instruction": "one", "output": "two"}, ASKED),
        ("alpaca", {"instruction": "one", "input": None, "output": "two"}, ASKED),
        ("alpaca", {"instruction": "one", "input": "of", "output": "two"}, turns("one\n\nof", "two")),
        ("sharegpt", {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]}, ASKED),
        ("sharegpt", {"conversations": ASKED}, ASKED),
        (
            "sharegpt",
            {
                "system": "be terse",
                "conversations": [
                    {"from": "user", "value": "one"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": "two", "weight": 0},
                    {"from": "human", "value": "three"},
                    {"from": "gpt", "value": "four"},
                ],
            },
            [
                {"role": "system", "content": "be terse"},
                *ASKED[:1],
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "3"},
                {**ASKED[1], "weight": 0},
                *turns("three", "four"),
            ],
        ),
    ],
)
def test_every_format_is_read_as_messages_and_told_by_its_fields(kind, fields, messages):
    for format in (kind, "auto"):
        assert read({**fields, "id": 3}, format) == Chat(messages, None)


def test_json_in_texts_is_read_as_templates_expect_it():
    tools = [{"type": "function", "function": {"name": "f", "description": None}}]
    call = {"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    bare = {"name": "f", "arguments": {"x": 1}}
    chat = read(
        {
            "messages": [*ASKED[:1], {"role": "assistant", "content": None, "tool_calls": [call, bare]}],
            "tools": json.dumps(tools),
        }
    )
    assert chat.messages[1] == {"role": "assistant", "tool_calls": [{"id": "1", **CALL}, CALL]}
    assert chat.tools == tools
    for none in ([], None, "null", "[]", ""):
        assert read({"messages": ASKED, "tools": none}).tools is None
    for none in ({}, None, "null", "{}", ""):
        assert read(
            {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [{**bare, "arguments": none}]}]}
        ).messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert read({"messages": ASKED, "input": datetime.date(2026, 1, 2), "system": b"\xff"}).messages == ASKED


def test_a_system_message_is_put_before_conversations_that_have_none():
    system = {"role": "system", "content": "be terse"}
    assert read({"messages": ASKED}, system="be terse").messages == [system, *ASKED]
    own = {"role": "developer", "content": "be wordy"}
    assert read({"messages": [own, *ASKED]}, system="be terse").messages == [own, *ASKED]


def test_all_that_is_said_is_its_text():
    call = [*ASKED[:1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "ü"}}]}]
    assert said(read({"messages": ASKED})) == "one\ntwo"
    assert said(read({"messages": call})) == 'one\n{"name": "f", "arguments": {"x": "ü"}}'


def test_parts_that_are_texts_are_one_text():
    parts = [{"type": "text", "text": text} for text in ("t", "wo")]
    assert read({"messages": [ASKED[0], {"role": "assistant", "content": parts}]}).messages == ASKED
    with_image = [{"type": "image", "url": "x"}, *parts]
    assert read({"messages": [{"role": "user", "content": with_image}, ASKED[1]]}).messages[0]["content"] == with_image


def test_records_of_parquet_have_no_field_of_another_record():
    def called(arguments, properties):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}
        return {"messages": [ASKED[0], {"role": "assistant", "tool_calls": [call]}], "tools": [tool]}

    own = called({"x": [{"of": 1}]}, {"x": {"type": "array"}})
    padded = called({"x": [{"of": 1, "at": None}], "city": None}, {"x": {"type": "array", "of": None}, "city": None})
    source = SourceConfig(kind="parquet", path="x", format="auto")
    assert conversation(padded, source, "a.parquet:7") == conversation(own, source, "a.parquet:7")
    assert read(padded) != read(own)  # JSON says none where it means it


def test_texts_may_be_bytes_as_tfds_gives_them():
    messages = [{key: value.encode() for key, value in turn.items()} for turn in turns("one", "zwölf")]
    tools = json.dumps([{"name": "f"}]).encode()
    assert read({"messages": messages, "tools": tools}) == Chat(turns("one", "zwölf"), [{"name": "f"}])
    said_by = [{"from": b"human", "value": b"one"}, {"from": b"gpt", "value": b"two"}]
    assert read({"conversations": said_by}) == Chat(ASKED, None)


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (
            "auto",
            {"text": "a"},
            "has the fields text, and not those of a conversation (messages, or conversations, or ",
        ),
        ("messages", {"text": "a"}, "no field 'messages'; it has text; set data.sources.N.format"),
        ("alpaca", {"instruction": "a"}, "no field 'output'; it has instruction"),
        ("auto", {"messages": "a"}, "field 'messages': expected a list of objects, got 'a'"),
        ("auto", {"messages": ["a"]}, "field 'messages': expected a list of objects, got ['a']"),
        ("auto", {"messages": []}, "no assistant message: nothing would be trained"),
        ("auto", {"messages": ASKED[:1]}, "no assistant message: nothing would be trained"),
        (
            "auto",
            {"messages": [*ASKED, {"role": "asistant", "content": ""}]},
            "message 3 has the role 'asistant'; one of ",
        ),
        ("auto", {"messages": [{"content": "a"}]}, "message 1 has the role None; one of system, developer, user,"),
        ("auto", {"messages": ASKED[1:]}, "message 1 is the assistant's, and nothing was asked before it; a user's "),
        ("auto", {"messages": [{"role": "user"}, *ASKED]}, "message 1, the user's, has no content"),
        ("auto", {"messages": [{"role": "user", "content": 3}, *ASKED]}, "message 1: 'content' is neither text nor a"),
        ("auto", {"messages": [*ASKED[:1], {**ASKED[1], "weight": 2}]}, "message 2 has the weight 2; 0 and 1 would do"),
        (
            "auto",
            {"messages": [*ASKED[:1], {**ASKED[1], "weight": 0}]},
            "every message of the assistant has the weight 0",
        ),
        ("auto", {"prompt": "one", "completion": ""}, "the assistant says nothing: nothing would be trained"),
        ("auto", {"prompt": None, "completion": "two"}, "field 'prompt': expected text, got none"),
        ("auto", {"instruction": None, "output": "two"}, "field 'instruction': expected text, got none"),
        ("auto", {"prompt": "one", "completion": " \n"}, "the assistant says nothing: nothing would be trained"),
        ("auto", {"messages": [ASKED[0], {"role": "assistant", "content": EMPTY}]}, "the assistant says nothing"),
        (
            "auto",
            {"messages": [ASKED[0], {**ASKED[1], "weight": 0}, ASKED[0], {"role": "assistant", "content": ""}]},
            "the assistant says nothing",
        ),
        ("auto", {"messages": ASKED, "tools": "{"}, "field 'tools': not JSON: '{'"),
        ("auto", {"messages": ASKED, "tools": "{}"}, "field 'tools': expected JSON with a list, got {}"),
        (
            "auto",
            {"messages": [*ASKED[:1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "message 2: the arguments of 'f': not JSON: '{'",
        ),
        (
            "auto",
            {"messages": [*ASKED[:1], {"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
            "message 2: expected a call with the name of a function, got {'arguments': {}}",
        ),
        ("auto", {"messages": turns("one", "t\ud800")}, "not valid UTF-8"),
        ("auto", {"messages": [{"role": "user", "content": b"\xff"}, ASKED[1]]}, "not valid UTF-8 (at 0: invalid st"),
        ("auto", {"messages": ASKED, "tools": '["\\ud800"]'}, "not valid UTF-8"),
        ("auto", {"messages": [{**ASKED[0], "\ud800": 1}, ASKED[1]]}, "not valid UTF-8"),
        ("auto", {"messages": [{**ASKED[0], "of": DEEP}, ASKED[1]]}, "field 'messages': nested too deep to be read"),
        ("auto", {"messages": ASKED, "tools": ["get_weather"]}, "field 'tools': expected a list of objects, got ['g"),
        (
            "auto",
            {"messages": [{**ASKED[0], "at": datetime.date(2026, 1, 2)}, ASKED[1]]},
            "field 'messages': expected what JSON can say, got date datetime.date(2026, 1, 2)",
        ),
        (
            "auto",
            {"messages": [{**ASKED[0], "tool_calls": [{"name": "f"}]}, ASKED[1]]},
            "message 1 is the user's and has 'tool_calls'; only the assistant's may have them",
        ),
        (
            "auto",
            {"messages": [ASKED[0], {**ASKED[1], "function_call": {"name": "f"}}]},
            "message 2 has a 'function_call', which is OpenAI's old form; 'tool_calls' would do",
        ),
        ("auto", {"conversations": [{"from": ["human"], "value": "a"}]}, "message 1 is from ['human']; one of system,"),
        ("auto", {"prompt": "a", "completion": 5}, "field 'completion': expected text, got int 5"),
        (
            "auto",
            {"conversations": [{"from": "robot", "value": "a"}]},
            "message 1 is from 'robot'; one of system, human,",
        ),
    ],
)
def test_what_is_no_conversation_is_told_with_its_place_and_what_would_do(kind, fields, complaint):
    with pytest.raises(BadRow) as error:
        read(fields, kind)
    assert str(error.value).startswith("a.jsonl:7")
    assert complaint in str(error.value)
