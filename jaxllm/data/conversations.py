"""Records of instruction data as conversations, in the shapes in which such data is published."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.config import SourceConfig
from jaxllm.data.document import BadRow, Chat, checked_text

ROLES = ("system", "developer", "user", "assistant", "tool")

SHAREGPT = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response", "tool_response"), "tool"),
    "function_call": "assistant",
}
"""Roles by the names of `from`."""

KEYS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
"""The fields by which a format is told, and which it must have."""

OTHERS = {"messages": (), "sharegpt": ("system",), "prompt_completion": (), "alpaca": ("system", "input")}
"""Fields that a format reads where they are there, besides `tools`."""

FIELDS = {"tools", *(key for fields in (*KEYS.values(), *OTHERS.values()) for key in fields)}
"""All that a format reads."""


def conversation(fields: Mapping[str, Any], source: SourceConfig, where: str) -> Chat:
    """What a record says, checked, with the arguments of calls as objects and without what is none.

    Args:
        fields: of the record; `prompt` and `completion` are those that the source's templates have made.
        source: of which `format` and `system` are read.
        where: names the record.

    Raises:
        BadRow: it is of another shape, or has no answer that could be trained on.
    """
    kind = _format(fields, where) if source.format == "auto" else source.format
    if missing := [key for key in KEYS[kind] if key not in fields]:
        raise BadRow(f"{where}: no field '{missing[0]}'; it has {', '.join(fields)}; set data.sources.N.format")
    read = (*KEYS[kind], *OTHERS[kind], "tools")
    fields = {key: _plain(fields[key], f"{where}, field '{key}'") for key in read if key in fields}
    if source.kind == "parquet":
        fields = {key: _own(value) for key, value in fields.items()}
    messages = _READ[kind](fields, where)
    if source.system is not None and not any(message.get("role") in ("system", "developer") for message in messages):
        messages = [{"role": "system", "content": source.system}, *messages]
    at = f"{where}, field 'tools'"
    tools = _objects(_parsed(fields.get("tools") or None, at, list) or [], at)
    return Chat(_checked(messages, where), [_without_none(tool) for tool in tools] or None)


def said(chat: Chat) -> str:
    """All that is said in a conversation."""
    contents = (
        [message.get("content"), *(call["function"] for call in message.get("tool_calls") or ())]
        for message in chat.messages
    )
    parts = (part for message in contents for part in message if part)
    return "\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts)


def _format(fields: Mapping[str, Any], where: str) -> str:
    for kind, keys in KEYS.items():
        if all(key in fields for key in keys):
            return kind
    raise BadRow(
        f"{where}: has the fields {', '.join(fields)}, and not those of a conversation ("
        + ", or ".join(" and ".join(keys) for keys in KEYS.values())
        + "); set data.sources.N.prompt and .completion, or .format = 'text'"
    )


def _messages(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    return _objects(fields["messages"], f"{where}, field 'messages'")


def _prompt_completion(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    messages = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = fields[key]
        if isinstance(value, list):
            turns = _objects(value, f"{where}, field '{key}'")
        else:
            turns = [{"role": role, "content": _text(fields, key, where)}]
        messages += [_untrained(turn) for turn in turns] if key == "prompt" else turns
    return messages


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    """A text that must be there, if it is empty."""
    if fields[key] is None:
        raise BadRow(f"{where}, field '{key}': expected text, got none")
    return checked_text(fields[key], f"{where}, field '{key}'")


def _untrained(message: dict[str, Any]) -> dict[str, Any]:
    """A message of a prompt: what the assistant said there is no completion, unless the message says its weight."""
    is_said = message.get("role") == "assistant" and message.get("weight") is None
    return {**message, "weight": 0} if is_said else message


def _alpaca(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    instruction, output = (_text(fields, key, where) for key in ("instruction", "output"))
    given = checked_text(fields.get("input"), f"{where}, field 'input'")
    question = f"{instruction}\n\n{given}" if given else instruction
    system = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    return [*system, {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _sharegpt(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    for number, turn in enumerate(_objects(fields["conversations"], f"{where}, field 'conversations'"), 1):
        if "from" not in turn and "role" in turn:  # messages under ShareGPT's name
            messages.append(turn)
            continue
        speaker, value = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in SHAREGPT:
            raise BadRow(f"{where}: message {number} is from {speaker!r:.40}; one of {', '.join(SHAREGPT)} would do")
        message: dict[str, Any] = {"role": SHAREGPT[speaker], "content": value}
        if speaker == "function_call":
            calls = _parsed(value, f"{where}: message {number}, 'value'", (list, dict))
            message = {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}
        messages.append(message | {key: turn[key] for key in ("weight",) if turn.get(key) is not None})
    return messages


_READ = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
}


def _checked(messages: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """
    Raises:
        BadRow: a message of a role that there is not or in a place where it cannot be, without content, or with
            content or calls of another shape; or no message that could be trained on.
    """
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        at = f"{where}: message {number}"
        role = message.get("role")
        if role not in ROLES:
            raise BadRow(f"{at} has the role {role!r:.40}; one of {', '.join(ROLES)} would do")
        known = _without_none(message)
        if "function_call" in known:
            raise BadRow(f"{at} has a 'function_call', which is OpenAI's old form; 'tool_calls' would do")
        if known.get("tool_calls") and role != "assistant":
            raise BadRow(f"{at} is the {role}'s and has 'tool_calls'; only the assistant's may have them")
        if role == "assistant":
            if not checked:
                raise BadRow(f"{at} is the assistant's, and nothing was asked before it; a user's would do")
            if known.get("tool_calls"):
                known["tool_calls"] = [_call(call, at) for call in _objects(known["tool_calls"], f"{at}, 'tool_calls'")]
            if known.get("weight", 1) not in (0, 1):
                raise BadRow(f"{at} has the weight {known['weight']!r:.40}; 0 and 1 would do")
        elif "content" not in known:
            raise BadRow(f"{at}, the {role}'s, has no content")
        content = known.get("content", "")
        is_parts = isinstance(content, list) and all(isinstance(part, Mapping) for part in content)
        if not (isinstance(content, str) or is_parts or role == "tool"):
            raise BadRow(f"{at}: 'content' is neither text nor a list of parts, got {content!r:.60}")
        if is_parts and content and all(part.get("type") == "text" and "text" in part for part in content):
            known["content"] = "".join(checked_text(part["text"], f"{at}, 'text'") for part in content)
        checked.append(known)
    _check_answers(checked, where)
    return checked


def _check_answers(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    """
    Raises:
        BadRow: nothing could be trained on.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    trained = [message for message in answers if message.get("weight", 1)]
    if not answers:
        wrong = "no assistant message"
    elif not trained:
        wrong = "every message of the assistant has the weight 0"
    elif not any(_says_something(message) for message in trained):
        wrong = "the assistant says nothing"
    else:
        return
    raise BadRow(f"{where}: {wrong}: nothing would be trained")


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls") or (content.strip() if isinstance(content, str) else content))


def _call(call: Mapping[str, Any], at: str) -> dict[str, Any]:
    """A call as OpenAI writes it, whose arguments are an object, as templates expect."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{at}: expected a call with the name of a function, got {call!r:.60}")
    arguments = _parsed(function.get("arguments") or None, f"{at}: the arguments of '{function['name']}'", dict) or {}
    outer = {"type": "function"} | ({k: v for k, v in call.items() if v is not None} if "function" in call else {})
    return outer | {"function": {**_without_none(function), "arguments": arguments}}


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRow(f"{where}: expected a list of objects, got {value!r:.60}")
    return value


def _parsed(value: Any, where: str, kind: type | tuple[type, ...]) -> Any:
    """`value`, which may be written as JSON in a text."""
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(f"{where}: not JSON: {value!r:.60}") from None
        value = _plain(read, where)
    if value is not None and not isinstance(value, kind):
        raise BadRow(f"{where}: expected JSON with {'a list' if kind is list else 'an object'}, got {value!r:.60}")
    return value


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _own(value: Any) -> Any:
    """`value` of Parquet without the fields that it has none of: there all records have the fields of any of them."""
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items() if item is not None}
    return [_own(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON has it, in which every text is one that UTF-8 can carry; those of TFDS are bytes.

    Raises:
        BadRow: a text that is none, or what JSON cannot say, as the times of Parquet.
    """
    if isinstance(value, str | bytes):
        return checked_text(value, where)
    try:
        if isinstance(value, Mapping):
            return {_plain(key, where): _plain(item, where) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, where) for item in value]
    except RecursionError:
        raise BadRow(f"{where}: nested too deep to be read") from None
    if value is None or isinstance(value, bool | int | float):
        return value
    raise BadRow(f"{where}: expected what JSON can say, got {type(value).__name__} {value!r:.60}")
