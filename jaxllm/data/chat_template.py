"""A model's own chat template: from a conversation to the text that the model was trained to read.

Templates are written in Jinja and published with the model. They are rendered as transformers renders them, to the
character, but in a process of their own (`chat_renderer.py`), which is ended when it works without end.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.common.paths import user_path
from jaxllm.config import UserError
from jaxllm.data.cache import key_of
from jaxllm.data.rendering import Renderers
from jaxllm.data.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`role`, and `content`, `tool_calls`, `reasoning_content` or whatever else the template reads; all of it JSON."""

TOOL_ROLES = ("tool", "ipython", "function")
"""Whose content may be any JSON: what a tool has returned."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which a message's reasoning may come, the first one that is there for all."""

CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks where the last message ends. Its space shows whether the template strips messages."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: list[tuple[int, int]] | None
    """Where in `text` stands what the assistant has said: first character, and the one after the last. There are none
    where the template does not mark it by `{% generation %}`; and where it does so in a macro, it is not known."""


class Asked(NamedTuple):
    """What is to be rendered."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = False


class ChatTemplate:
    """Renders conversations. Threads may share one; a process that was forked off may not."""

    def __init__(
        self,
        source: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        name: str = "chat template",
    ):
        """
        Args:
            source: Jinja, or several templates by their names. Of those `tool_use` renders conversations with tools,
                and `default` all others.
            special_tokens: what the template reads as `bos_token`, `eos_token` and the like.
            name: of the file, for messages.

        Raises:
            UserError: a template is not written in Jinja, none is the default, or jinja2 is not installed.
        """
        self.name = name
        self.special_tokens = dict(special_tokens or {})
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        """By their names."""
        if "default" not in self.sources:
            raise UserError(f"{name}: of several templates one is named 'default'; there are {sorted(self.sources)}")
        self._renderers = Renderers()
        self._ask("default", None)

    @property
    def marks(self) -> bool:
        """It has `{% generation %}` around what the assistant says."""
        return any(re.search(r"{%[-+]?\s*generation\b", source) for source in self.sources.values())

    def fingerprint(self) -> str:
        """A hash of all that a text follows from, besides the conversation."""
        named = {name: token for name, token in self.special_tokens.items() if self.spells(name)}
        return key_of([self.sources, named])

    def spells(self, text: str) -> bool:
        """Whether `text` stands in it."""
        return any(text in source for source in self.sources.values())

    def save(self, folder: Path) -> None:
        """Writes the files that `load_chat_template` reads."""
        (folder / "chat_template.jinja").write_text(self.sources["default"], encoding="utf-8")
        for kind in self.sources.keys() - {"default"}:
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            path = folder / "additional_chat_templates" / f"{kind}.jinja"
            path.write_text(self.sources[kind], encoding="utf-8")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation; equal to `tokenizer.apply_chat_template(..., tokenize=False)` of transformers.

        Args:
            messages: at least one.
            tools: JSON schemas of what the assistant may call.
            documents: what it may read.
            add_generation_prompt: end with what comes before the assistant's next answer.
            continue_final_message: end within the last message, which the assistant goes on with.
            variables: read by the template besides, such as `enable_thinking`.

        Raises:
            UserError: messages of another shape; the template refuses them, fails, or works without end.
        """
        chat = _checked(messages)
        final = _tag_the_end(chat) if continue_final_message else ""
        if continue_final_message and add_generation_prompt:
            raise UserError("a final message that is gone on with leaves no place for a generation prompt")
        text = self._rendered(chat, tools, documents, add_generation_prompt, variables)["text"]
        return self._cut(text, final) if continue_final_message else text

    def render_with_spans(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Rendered:
        """The text of a whole conversation, and where in it the assistant speaks. Args and Raises as for `render`."""
        answer = self._rendered(_checked(messages), tools, documents, False, variables)
        if answer["spans"] is None:
            raise UserError(
                f"{self.name}: {{% generation %}} stands in a macro or in {{% set %}}, and has no place there"
            )
        return _rendered(answer)

    def render_each(self, asked: Sequence[Asked]) -> list[Rendered | UserError]:
        """All at once, which is faster than one by one; in the place of each that the template refuses, why."""
        found: list[Rendered | UserError] = [UserError()] * len(asked)
        kinds = [self._kind(each.tools) for each in asked]
        for kind in dict.fromkeys(kinds):
            which = [i for i, own in enumerate(kinds) if own == kind]
            variables = [self._variables(_checked(asked[i].messages), *asked[i][1:]) for i in which]
            for i, answer in zip(which, self._renderers.ask(self.sources[kind], variables), strict=True):
                found[i] = UserError(self._refusal(kind, answer)) if "error" in answer else _rendered(answer)
        return found

    def _rendered(
        self, chat: list[dict[str, Any]], tools: Any, documents: Any, prompt: bool, variables: Mapping[str, Any]
    ) -> dict[str, Any]:
        return self._ask(self._kind(tools), self._variables(chat, tools, prompt, documents, **variables))

    def _variables(
        self, chat: list[dict[str, Any]], tools: Any, prompt: bool, documents: Any = None, **variables: Any
    ) -> dict[str, Any]:
        named = {"messages": chat, "tools": tools, "documents": documents, "add_generation_prompt": prompt}
        return {**self.special_tokens, **variables, **named}

    def _kind(self, tools: Any) -> str:
        return "tool_use" if tools is not None and "tool_use" in self.sources else "default"

    def _ask(self, kind: str, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        (answer,) = self._renderers.ask(self.sources[kind], [variables])
        if "error" in answer:
            raise UserError(self._refusal(kind, answer))
        return answer

    def _refusal(self, kind: str, answer: Mapping[str, Any]) -> str:
        which = f", template '{kind}'" if len(self.sources) > 1 else ""
        line = f", line {answer['line']}" if answer["line"] else ""
        return f"{self.name}{which}{line}: {answer['error']}"

    def _cut(self, text: str, final: str) -> str:
        """`text` up to the mark of `_tag_the_end`."""
        mark = CONTINUE.strip()
        if mark not in text or final.strip() not in text:
            raise UserError(f"{self.name}: the final message is not rendered whole, and cannot be gone on with")
        at = text.rindex(mark)
        return text[:at] if text.startswith(CONTINUE, at) else text[:at].rstrip()


def _rendered(answer: Mapping[str, Any]) -> Rendered:
    spans = answer["spans"]
    return Rendered(answer["text"], None if spans is None else [(start, end) for start, end in spans])


def load_chat_template(folder: str | Path, tokenizer: Tokenizer | None = None) -> ChatTemplate | None:
    """The chat template in the folder of a model; none if it has none.

    It is `chat_template.jinja`, with those in `additional_chat_templates/` beside it, or else what
    `tokenizer_config.json` holds, which also names the special tokens; where that file is missing, `tokenizer` does.

    Raises:
        UserError: a file cannot be read or holds something else, the template is not written in Jinja, or jinja2 is not
            installed.
    """
    folder = user_path(folder)
    path = folder / "tokenizer_config.json"
    config = _config(path) if path.is_file() else {}
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    source = {name: _text(file) for name, file in files.items()} or _named(config.get("chat_template"), path)
    if not source:
        return None
    special = own_tokens(tokenizer) if tokenizer is not None and not path.is_file() else _special_tokens(config)
    return ChatTemplate(source, special, name=str(files.get("default", folder if files else path)))


def template_from_file(path: Path, folder: Path | None, tokenizer: Tokenizer) -> ChatTemplate:
    """A template in a file of its own, with the special tokens of the tokenizer, which lies in `folder`.

    Raises:
        UserError: the file cannot be read, or is not written in Jinja; or jinja2 is not installed.
    """
    return ChatTemplate(_text(path), special_tokens(folder, tokenizer), name=str(path))


def special_tokens(folder: Path | None, tokenizer: Tokenizer) -> dict[str, str]:
    """What `load_chat_template` finds for templates in that folder."""
    path = folder and folder / "tokenizer_config.json"
    return _special_tokens(_config(path)) if path and path.is_file() else own_tokens(tokenizer)


def own_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """`bos_token` and `eos_token`, by the tokenizer alone."""
    return {f"{role}_token": tokenizer.token_name(getattr(tokenizer, f"{role}_id")) for role in ("bos", "eos")}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object, got {config!r:.60}")
    return config


def _named(entry: Any, path: Path) -> dict[str, str]:
    """The entry `chat_template`: none, a template, or a list of `{"name": ..., "template": ...}`."""
    listed = [] if entry is None else [{"name": "default", "template": entry}] if isinstance(entry, str) else entry
    try:
        named = {each["name"]: each["template"] for each in listed}
    except (TypeError, KeyError):
        named = {"": None}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise UserError(f"{path}: chat_template is neither a template nor a list of such with 'name' and 'template'")
    return named


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Entries such as `bos_token`: a text, or an object that holds it."""
    tokens = {key: token for key, token in config.items() if key.endswith("_token")}
    texts = {key: token.get("content") if isinstance(token, dict) else token for key, token in tokens.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` as the template reads them: without what is none, and with reasoning under the usual names.

    Raises:
        UserError: one is of another shape.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise UserError(f"a conversation is a list of at least one message, got {messages!r:.60}")
    chat = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {number}: expected an object with a 'role', got {message!r:.60}")
        content = message.get("content")
        parts = isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content)
        if not (content is None or isinstance(content, str) or parts or message["role"] in TOOL_ROLES):
            raise UserError(f"message {number}: 'content' is neither text nor a list of parts, got {content!r:.60}")
        named = {key: value for key, value in message.items() if value is not None}
        reasoning = next((named[key] for key in REASONING if key in named), None)
        if reasoning is not None:
            named = {"thinking": reasoning, **named, "reasoning_content": reasoning}
        chat.append(named)
    return chat


def _tag_the_end(chat: list[dict[str, Any]]) -> str:
    """Marks the end of the last message's text, in place, and gives that text.

    Raises:
        UserError: it has none.
    """
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + CONTINUE
        return content
    parts = list(content or ())
    for i in reversed(range(len(parts))):
        if isinstance(parts[i], Mapping) and isinstance(text := parts[i].get("text"), str):
            parts[i] = {**parts[i], "text": text + CONTINUE}
            chat[-1]["content"] = parts
            return text
    raise UserError(f"message {len(chat)}: has no text that could be gone on with")
