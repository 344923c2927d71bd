"""From a row to the tokens that a model reads: through its chat template, or as plain text."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxllm.config import UserError
from jaxllm.data.chat_tokens import encode_chat
from jaxllm.evaluation.likelihood import Request, encode_pair
from jaxllm.evaluation.model import Model
from jaxllm.evaluation.rows import Row
from jaxllm.generation.prefill import prompt_ids

BETWEEN = "\n\n"
"""What plain examples are parted by."""


class Prompts:
    """What comes before an answer: the system's message, solved examples as turns or paragraphs, and the question.

    What is longer than the model reads loses its beginning, and is counted.
    """

    def __init__(self, model: Model, system: str | None, examples: Callable[[Row], Sequence[Row]]):
        """
        Args:
            model: that reads them.
            system: what it is told before all else.
            examples: of a row.
        """
        self.cut = 0
        """How many were too long."""
        self._model, self._system, self._examples = model, system, examples
        self._most = model.reads

    def question(self, row: Row, room: int) -> list[int]:
        """The ids that an answer of up to `room` tokens follows.

        Raises:
            UserError: a conversation, and the model has no chat template or refuses it.
        """
        if self._model.template is None:
            config = self._model.config
            ids = prompt_ids(config.model, self._model.tokenizer, self._text(row), config.tokenizer.begins_prompts)
        else:
            ids = self._chat(row)
        # The last token of an answer is not read. At least a quarter of what a model reads is left to the question.
        return self._fitted(ids, self._most - min(room, self._most * 3 // 4) + 1)

    def choices(self, row: Row) -> list[Request]:
        """What the likelihood of each choice is: it is the assistant's answer, or goes on with the text after a space
        (where neither has one). Raises as `question`."""
        encode = self._model.tokenizer.encode
        if self._model.template is None:
            text = self._text(row)
            pairs = [encode_pair(encode, text, joint(text, choice) + choice) for choice in row.choices]
            pairs = [([*self._model.begin, *context] or [self._model.tokenizer.bos_id], ids) for context, ids in pairs]
        else:
            context = self._chat(row)
            pairs = [(context, self._said(choice)) for choice in row.choices]
        room = self._most + 1 - max(len(ids) for _, ids in pairs)
        if room < 1 or not all(ids for _, ids in pairs):
            raise UserError(f"{row.name}: a choice has no token, or more than the model reads ({self._most})")
        context = self._fitted(pairs[0][0], room)  # the same for all, which is then read once
        return [Request(context, ids) for _, ids in pairs]

    def alone(self, requests: Sequence[Request]) -> list[Request]:
        """The same choices after nothing but the token that begins a text."""
        return [Request([self._model.tokenizer.bos_id], request.continuation) for request in requests]

    def _fitted(self, ids: list[int], most: int) -> list[int]:
        self.cut += len(ids) > most
        return ids[-most:]

    def _said(self, text: str) -> list[int]:
        """The ids of what the assistant says, after the tokens of a prompt: special tokens that it spells are text."""
        tokenizer = self._model.tokenizer
        before = tokenizer.token_name(tokenizer.bos_id)
        return tokenizer.encode_with_specials(before, text)[len(tokenizer.encode_with_specials(before)) :]

    def _text(self, row: Row) -> str:
        parts = [] if self._system is None else [self._system]
        for example in self._examples(row):
            prompt, answer = _only_text(example), example.references[0]
            parts.append(prompt + joint(prompt, answer) + answer)
        return BETWEEN.join([*parts, _only_text(row)])

    def _chat(self, row: Row) -> list[int]:
        messages: list[dict[str, Any]] = []
        for each in [*self._examples(row), row]:
            asked = [{"role": "user", "content": each.prompt}] if isinstance(each.prompt, str) else [*each.prompt]
            if messages and asked[0]["role"] == "system":
                asked = asked[1:]  # the first one stands
            answer = [] if each is row else [{"role": "assistant", "content": each.references[0]}]
            messages += [*asked, *answer]
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        assert self._model.template is not None
        try:
            return encode_chat(self._model.template, self._model.tokenizer, messages, add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None


def joint(prompt: str, answer: str) -> str:
    """What plain text has between both: a space, unless one of them has white space there (as lm-eval's tasks)."""
    return "" if prompt[-1:].isspace() or answer[:1].isspace() else " "


def _only_text(row: Row) -> str:
    if isinstance(row.prompt, str):
        return row.prompt
    if len(row.prompt) == 1 and row.prompt[0]["role"] == "user":
        content = row.prompt[0]["content"]
        if isinstance(content, str):
            return content
        if all(isinstance(part.get("text"), str) for part in content):
            return "".join(part["text"] for part in content)
        raise UserError(f"{row.name}: parts of a message that are no text, and the model has no chat template")
    raise UserError(f"{row.name}: a conversation of {len(row.prompt)} messages, and the model has no chat template")
