"""A conversation as token ids, in which the template alone writes special tokens."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxllm.config import UserError
from jaxllm.data.chat_template import ChatTemplate, Message
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
    special = any_of(tokenizer.specials)
    used = json.dumps(messages, ensure_ascii=False) + text
    before, after = [mark for mark in map(chr, PRIVATE) if mark not in used][:2]
    marked = _with_text(list(messages), lambda t: re.sub(special, rf"{before}\g<0>{after}", t))
    if marked == list(messages):
        return tokenizer.encode_with_specials(text)
    # A template may split a text at such a spelling; what was between a pair is then no longer, but stays apart.
    parts = re.split(f"{before}({special}){after}|[{before}{after}]", template.render(marked, **options))
    parts = [part or "" for part in parts]
    if "".join(parts) != text:
        raise UserError(f"{template.name}: it reads special tokens that a message spells; spell them otherwise")
    return tokenizer.encode_with_specials(*parts)


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
