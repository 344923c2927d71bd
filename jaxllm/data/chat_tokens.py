"""A conversation as token ids, in which the template alone writes special tokens."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from jaxllm.config import UserError
from jaxllm.data.chat_template import Asked, ChatTemplate, Message, Rendered
from jaxllm.data.document import Chat
from jaxllm.data.tokenizer import Tokenizer, any_of

PRIVATE = range(0x100000, 0x10FFFE)
"""Characters without a meaning, which no template and hardly any text holds."""


def encode_chat(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], **options: Any) -> list[int]:
    """The ids of a conversation, in which a special token that a message spells stays text.

    Otherwise they are those of `tokenizer.encode_with_specials(template.render(messages, **options))`, to which
    transformers' `apply_chat_template` is equal: there, who writes `<|im_end|>` ends the turn, and may go on as the
    assistant or the system.

    Such spellings are put between two characters that are nowhere else, and are found by them in the rendered text.

    Args:
        template: of the model.
        tokenizer: of the model.
        messages: the conversation.
        options: of `ChatTemplate.render`.

    Raises:
        UserError: as `ChatTemplate.render`; or the template does not render the spelling of a special token as it came.
    """
    text = template.render(messages, **options)
    spelled = _Spelled(template, any_of(tokenizer.specials), Chat(messages, options.get("tools")))
    if not spelled.any:
        return tokenizer.encode_with_specials(text)
    return tokenizer.encode_with_specials(*spelled.parts(text, template.render(spelled.messages, **options)))


class _Spelled:
    """Special tokens that messages spell: put between two characters that are nowhere else, they are found again."""

    def __init__(self, template: ChatTemplate, special: str, chat: Chat):
        """`special` is a regular expression for their names."""
        self._name, self._special = template.name, special
        used = json.dumps(chat, ensure_ascii=False)
        marks = (mark for mark in map(chr, PRIVATE) if mark not in used and not template.spells(mark))
        self._before, self._after = next(marks), next(marks)
        marked = rf"{self._before}\g<0>{self._after}"
        self.messages = _with_text(list(chat.messages), lambda text: re.sub(self._special, marked, text))
        """With the marks."""
        self.any = self.messages != list(chat.messages)

    def parts(self, text: str, marked: str) -> list[str]:
        """`text` in parts: in the first, third and so on special tokens are read, the others are what messages spell.

        `marked` is the rendered text of the marked messages.

        Raises:
            UserError: the template has made another text of them.
        """
        # A template may split a text at such a spelling; what was between a pair is then no longer, but stays apart.
        parts = re.split(f"{self._before}({self._special}){self._after}|[{self._before}{self._after}]", marked)
        parts = [part or "" for part in parts]
        if "".join(parts) != text:
            raise UserError(f"{self._name}: it reads special tokens that a message spells; spell them otherwise")
        return parts


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token that follows what the assistant has said; none where the template writes no such token."""
    said = "An answer."
    messages = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": said}]
    try:
        _, found, rest = template.render(messages).rpartition(said)
    except UserError:  # it refuses such a conversation
        return None
    ids = tokenizer.encode_with_specials(rest) if found else []
    return ids[0] if ids and tokenizer.token_name(ids[0]) in tokenizer.specials else None


def _with_text(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text in it changed, but for keys and roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: item if key == "role" else _with_text(item, change) for key, item in value.items()}
    return [_with_text(item, change) for item in value] if isinstance(value, list) else value


class Encoded(NamedTuple):
    """A conversation to train on."""

    ids: list[int]
    trained: list[bool]
    """Of each token, whether the model itself is to write it."""


def training_end(template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    """The special token that ends a plain answer, as far as that can be told.

    Raises:
        UserError: the template tells the model neither when it is its turn, nor how to end it; or says no word of what
            the assistant said.
    """
    said = "An answer."
    question = [{"role": "user", "content": "A question?"}]
    whole, prompt, without = template.render_each(
        [
            Asked([*question, {"role": "assistant", "content": said}]),
            Asked(question, add_generation_prompt=True),
            Asked(question),
        ]
    )
    if isinstance(whole, UserError) or isinstance(prompt, UserError) or isinstance(without, UserError):
        return None  # it takes other conversations only
    rest = whole.text.removeprefix(prompt.text).lstrip()
    # Some templates end a question with what is prompt enough, such as Llama 2's [/INST].
    if prompt.text == without.text and not rest.startswith(said):
        raise UserError(
            f"{template.name}: it has no generation prompt (add_generation_prompt changes nothing), so that nothing "
            "tells the model that it is its turn; add what stands before an answer"
        )
    _, is_said, after = whole.text.rpartition(said)
    if not is_said:
        raise UserError(
            f"{template.name}: it leaves out what the assistant says; write {{{{ message.content }}}} there"
        )
    found = re.match(rf"\s*({any_of(tokenizer.specials)})", after)
    if found is None:
        raise UserError(
            f"{template.name}: it writes no special token of the tokenizer after an answer, so that the model would "
            "never learn to end one; write {{ eos_token }} there"
        )
    return found[1]


def encode_training(
    template: ChatTemplate, tokenizer: Tokenizer, chats: Sequence[Chat], end: str | None
) -> list[Encoded | UserError]:
    """Each conversation as tokens, of which those are trained that the model itself must write.

    These are the tokens from the end of the generation prompt to that which ends the assistant's turn, of every
    message of the assistant whose `weight` is not 0. Where the template marks them by `{% generation %}`, the marks
    count; else a turn begins where the text of the messages before it, with the generation prompt, ends. The text is
    split at the borders of these spans, and each part is encoded by itself, so that the ids of a prompt are those that
    `encode_chat` makes of it. As there, a special token that a message spells stays text.

    Args:
        template: of the model.
        tokenizer: of the model.
        chats: conversations.
        end: from `training_end`.

    Returns:
        In the place of a conversation that the template refuses, or whose turns cannot be told, why.
    """
    plain = [Chat([{k: v for k, v in m.items() if k != "weight"} for m in c.messages], c.tools) for c in chats]
    special = any_of(tokenizer.specials)
    spelled = [_Spelled(template, special, chat) for chat in plain]
    turns = [[i for i, message in enumerate(chat.messages) if message["role"] == "assistant"] for chat in chats]
    asked: list[Asked] = []
    places = []
    for chat, marked, own in zip(plain, spelled, turns, strict=True):
        wanted = [Asked(*chat)]
        wanted += [Asked(marked.messages, chat.tools)] * marked.any
        for i in own if not template.marks else ():
            wanted += [Asked(chat.messages[:i], chat.tools, True), Asked(chat.messages[: i + 1], chat.tools)]
        places.append(slice(len(asked), len(asked) + len(wanted)))
        asked += wanted
    rendered = template.render_each(asked)
    found: list[Encoded | UserError] = []
    for chat, marked, own, place in zip(chats, spelled, turns, places, strict=True):
        try:
            texts = _all_rendered(rendered[place])
            whole, text = texts.pop(0), texts.pop(0).text if marked.any else None
            parts = [whole.text] if text is None else marked.parts(whole.text, text)
            turn = _Turns(template.name, special, whole, parts, end)
            spans = turn.marked(len(own)) if template.marks else turn.prompted(chat, own, texts)
            turn.check_tools(chat, own, spans)
            kept = [span for span, i in zip(spans, own, strict=True) if chat.messages[i].get("weight", 1)]
            found.append(_encoded(tokenizer, parts, kept))
        except UserError as error:
            found.append(error)
    return found


def _all_rendered(rendered: Sequence[Rendered | UserError]) -> list[Rendered]:
    """
    Raises:
        UserError: one of them is refused.
    """
    for each in rendered:
        if isinstance(each, UserError):
            raise each
    return [each for each in rendered if isinstance(each, Rendered)]


class _Turns:
    """Where in a rendered conversation the assistant's turns lie, from their first character to after their last."""

    def __init__(self, name: str, special: str, whole: Rendered, parts: Sequence[str], end: str | None):
        self._name, self._whole, self._end = name, whole, end
        self._special = re.compile(special)
        # What messages spell is no special token.
        self._visible = "".join(part if n % 2 == 0 else "\0" * len(part) for n, part in enumerate(parts))

    def marked(self, count: int) -> list[tuple[int, int]]:
        """By `{% generation %}`, up to the token that ends the turn, whether the mark includes it or not."""
        if self._whole.spans is None or len(self._whole.spans) != count:
            there = "in a macro or in {% set %}" if self._whole.spans is None else f"{len(self._whole.spans)} times"
            raise UserError(f"{self._name}: {{% generation %}} stands {there}, and not once around each turn")
        spans = []
        for start, stop in self._whole.spans:
            said = self._visible[start:stop].rstrip()
            ends = [match.end() for match in self._special.finditer(said)]
            if ends[-1:] == [len(said)]:
                stop = start + len(said)
            elif after := re.compile(rf"\s*(?:{self._special.pattern})").match(self._visible, stop):
                stop = after.end()
            spans.append((start, stop))
        return spans

    def prompted(self, chat: Chat, turns: Sequence[int], texts: Sequence[Rendered]) -> list[tuple[int, int]]:
        """By the texts of the messages before each turn, with the generation prompt, and of those up to its end."""
        spans = []
        for i, prompt, upto in zip(turns, texts[::2], texts[1::2], strict=True):
            start = len(prompt.text)
            stop = self._stop(start, upto.text, chat.messages[i])
            if not self._whole.text.startswith(prompt.text) or stop is None:
                raise UserError(
                    f"{self._name}: where message {i + 1}, the assistant's, begins or ends cannot be told from the "
                    "text of the messages before it; mark what the assistant says with {% generation %}"
                )
            spans.append((start, stop))
        return spans

    def check_tools(self, chat: Chat, turns: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        """
        Raises:
            UserError: a turn calls a tool, and its text does not name it; or the whole does not name one that there is.
        """
        for tool in chat.tools or ():
            if isinstance(name := tool.get("function", tool).get("name"), str) and name not in self._whole.text:
                raise UserError(
                    f"{self._name}: it does not tell of the tool {name!r}; "
                    "tokenizer.chat_template may name one that knows tools"
                )
        for i, (start, stop) in zip(turns, spans, strict=True):
            for call in chat.messages[i].get("tool_calls") or ():
                if (name := call["function"]["name"]) not in self._whole.text[start:stop]:
                    raise UserError(
                        f"{self._name}: it does not write the call of the tool {name!r} in message {i + 1}; "
                        "tokenizer.chat_template may name one that knows tools"
                    )

    def _stop(self, start: int, upto: str, message: Mapping[str, Any]) -> int | None:
        """After the token that ends the turn which begins at `start`; `upto` is the text of it and all before it."""
        last = self._whole.text.startswith(upto)
        found = [*self._special.finditer(self._visible, start, len(upto) if last else len(self._visible))]
        ends = [match for match in found if match[0] == self._end]
        if last:  # a call of a tool may be ended by another token; and after an end the text of a whole may go on
            chosen = (ends or found)[-1:]
        else:  # a turn that is not the last may be rendered otherwise, such as without its reasoning
            chosen = ends[:1] if not message.get("tool_calls") else []
        return chosen[0].end() if chosen else None


def _encoded(tokenizer: Tokenizer, parts: Sequence[str], spans: Sequence[tuple[int, int]]) -> Encoded:
    """The ids of a text in parts as `encode_with_specials` takes them, cut at the borders of the spans."""
    cut: list[str] = []
    trained: list[bool] = []
    for text, is_spelled, is_trained in _cut(parts, spans):
        if len(cut) % 2 != is_spelled:
            cut.append("")
            trained.append(False)
        cut.append(text)
        trained.append(is_trained)
    ids = tokenizer.encode_parts(*cut)
    return Encoded(
        [i for part in ids for i in part], [own for part, own in zip(ids, trained, strict=True) for _ in part]
    )


def _cut(parts: Sequence[str], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[str, bool, bool]]:
    """(text, is what a message spells, is trained) of pieces that lie on one side of all borders."""
    borders = sorted(border for span in spans for border in span)
    start = 0
    for number, part in enumerate(parts):
        stop = start + len(part)
        for a, b in pairwise([start, *(border for border in borders if start < border < stop), stop]):
            if a < b:
                yield part[a - start : b - start], number % 2 == 1, any(first <= a < last for first, last in spans)
        start = stop
