"""Write what transformers makes of the chat templates in tests/fixtures/chat/: expected.json, and tokens.json.

    pip install -e .[bench] && python tools/make_chat_fixtures.py

The templates were written for these tests, but for `smollm2.jinja`, which is that of SmolLM2-135M-Instruct (Hugging
Face, Apache-2.0). Every template renders every conversation, with and without tools and a generation prompt. Of
chatml.jinja, which marks what the assistant says, tokens.json has the ids and the mask of every conversation, by a
byte-level BPE that tokenizer.json holds. Every run writes the same files.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

FOLDER = Path(__file__).parent.parent / "tests" / "fixtures" / "chat"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def said(*texts: str, by: str = "ua") -> list[dict[str, Any]]:
    """Messages by each role of `by` in turn."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    who = by[0] + "ua" * len(texts) if by[0] == "s" else by * len(texts)
    return [{"role": roles[role], "content": text} for role, text in zip(who, texts, strict=False)]


def call(identifier: str, arguments: Any) -> dict[str, Any]:
    """A call of the first tool."""
    return {"id": identifier, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def parts(*texts: str) -> list[dict[str, str]]:
    """Content as a list."""
    return [{"type": "text", "text": text} for text in texts]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather <now> & "here", in °C',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Malmö"]}, "days": {"default": 1}},
                "required": ["city"],
            },
        },
    }
]

QUESTION = said("What is the weather?")

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": said("Hello"),
    "system": said("You are terse.", "Hello", by="s"),
    "turns": said("Hi", "Hello!", "How are you?", "Fine.\n\nAnd you?", "Good"),
    "system and turns": said("You are terse. ", "Hi", "Hello!", "Bye", "Bye.", by="s"),
    "spaces": said(" \tsystem\n", "  before and after \n\n", "\n\n  answer  ", "\n", by="s"),
    "empty": said("", "", "x"),
    "special tokens": said("<|im_end|>\n<|im_start|>system\n</s><s>[INST] {{ bos_token }} {% if %} {# #}", "</s>"),
    "unicode": said("naïve 漢字 🦊 \u2028\u00a0", "élan ✓", "«ñ»"),
    "html": said("<b>a & b</b> \"q\" 'q' \\n"),
    "two of the user": said("a", "b", by="u"),
    "parts": [{"role": "user", "content": parts("one ", "two")}, {"role": "assistant", "content": parts("three")}],
    "reasoning": [*said("Hi"), {"role": "assistant", "content": "Hello", "thinking": "A greeting."}, *said("Bye")],
    "no content": [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call("1", {"city": "Malmö"})]}],
    "tool": [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call("1", {"city": "Paris", "days": 2}), call("2", "{}")]},
        {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "sunny, 20°"},
        {"role": "tool", "name": "weather", "tool_call_id": "2", "content": {"t": 20, "sky": "<blue>"}},
        *said("It is sunny.", by="a"),
    ],
}


def expected(template: str, conversation: str, tools: bool, prompt: bool) -> dict[str, Any]:
    """One case: what is given, and `text` with `spans`, or the `error`."""
    case: dict[str, Any] = {"template": template, "conversation": conversation, "tools": tools, "prompt": prompt}
    source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    try:
        texts, spans = render_jinja_template(
            [_normalize_chat_messages(CONVERSATIONS[conversation])],
            tools=TOOLS if tools else None,
            documents=[{"title": "a"}, {"title": "b"}] if tools else None,
            chat_template=source,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask="{%- generation" in source,
            **SPECIAL,
        )
    except Exception as error:  # the template's own, whatever it is
        return {**case, "error": str(error)}
    return {**case, "text": texts[0], "spans": [list(span) for span in spans[0]] if spans else []}


def trained_tokenizer() -> Tokenizer:
    """On the conversations, with the tokens of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps(CONVERSATIONS, ensure_ascii=False)] * 3, trainer)
    return tokenizer


def tokens() -> dict[str, Any]:
    """Ids and mask of each conversation in which the assistant speaks."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained_tokenizer())
    tokenizer.chat_template = (FOLDER / "chatml.jinja").read_text(encoding="utf-8")
    found = {}
    for name, messages in CONVERSATIONS.items():
        if any(message["role"] == "assistant" for message in messages):
            made = tokenizer.apply_chat_template(
                _normalize_chat_messages(messages),
                tools=TOOLS,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **SPECIAL,
            )
            found[name] = {"ids": made["input_ids"], "mask": made["assistant_masks"]}
    return found


if __name__ == "__main__":
    templates = sorted(path.stem for path in FOLDER.glob("*.jinja"))
    cases = [
        expected(template, conversation, tools, prompt)
        for template in templates
        for conversation in CONVERSATIONS
        for tools in (False, True)
        for prompt in (False, True)
    ]
    content = {"special_tokens": SPECIAL, "tools": TOOLS, "conversations": CONVERSATIONS, "cases": cases}
    (FOLDER / "expected.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    trained_tokenizer().save(str(FOLDER / "tokenizer.json"))
    (FOLDER / "tokens.json").write_text(json.dumps(tokens()) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases, of which {sum('error' in case for case in cases)} are refused")
