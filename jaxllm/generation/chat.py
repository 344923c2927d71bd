"""A conversation with a model: what was said, what of it the model still reads, and its answers as they come."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxllm.config import UserError
from jaxllm.data.chat_template import ChatTemplate
from jaxllm.data.chat_tokens import encode_chat
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.generate import AS_THE_MODEL_SAYS, Generator
from jaxllm.generation.text import Finish, TextStream


class Answer(NamedTuple):
    """What the model has said."""

    text: str
    finish: Finish | Literal["interrupted"]
    """Why it ended."""
    forgotten: int
    """Turns that were left out of what the model reads, and had not been before."""


class Turn(NamedTuple):
    """A message of the user, and the answer to it."""

    message: str
    answer: str


class Conversation:
    """Turn by turn. Each of them reads the whole conversation anew, from its beginning."""

    def __init__(
        self,
        generator: Generator,
        template: ChatTemplate,
        *,
        system: str | None = None,
        max_new_tokens: int = 1024,
        sampling: SamplingConfig = AS_THE_MODEL_SAYS,
        seed: int = 0,
    ):
        """
        Args:
            generator: of the model; its `ends` end an answer.
            template: of the model.
            system: what comes before all turns.
            max_new_tokens: of an answer.
            sampling: how tokens are chosen.
            seed: of the first answer; each one after it has the next, also when it answers the same again.
        """
        self.system = system
        self.turns: list[Turn] = []
        self.forgotten = 0
        """The oldest turns that the model reads no more, since they are too long together."""
        self._generator, self._template = generator, template
        self._max_new_tokens, self._sampling, self._seed = max_new_tokens, sampling, seed

    def messages(self, start: int = 0) -> list[dict[str, str]]:
        """The system's and all turns, or those from `start` on."""
        said = [("system", self.system)] if self.system else []
        for turn in self.turns[start:]:
            said += [("user", turn.message), ("assistant", turn.answer)]
        return [{"role": role, "content": text} for role, text in said]

    def ask(self, message: str, on_text: Callable[[str], None] = lambda piece: None) -> Answer:
        """The answer to `message`; both are a turn now.

        Ctrl-C ends an answer: what came of it is kept, and where nothing came, there is no turn.

        Args:
            message: the user's.
            on_text: called with each piece of the answer as soon as that is final.

        Raises:
            UserError: the template refuses the conversation, or the message alone is longer than the model reads.
                Nothing has changed then.
        """
        text, finish, before = "", None, self.forgotten
        try:
            ids = self._prompt(message)
            limit = self._generator.limit(ids, self._max_new_tokens)
            row = TextStream(self._generator.tokenizer, ids, limit, ends=self._generator.ends)
            seed, self._seed = self._seed, (self._seed + 1) % 2**32
            for tokens in self._generator.tokens([ids], self._max_new_tokens, self._sampling, [seed]):
                piece = row.feed(int(tokens[0]))
                text, finish = row.text, row.finish
                if piece:
                    on_text(piece)
                if finish:
                    break
        except KeyboardInterrupt:
            finish = None
        if finish or text:
            self.turns.append(Turn(message, text))
        return Answer(text, finish or "interrupted", self.forgotten - before)

    def undo(self) -> None:
        """Takes the last turn back.

        Raises:
            UserError: there is none.
        """
        if not self.turns:
            raise UserError("there is no turn to take back")
        self.turns.pop()
        self.forgotten = min(self.forgotten, len(self.turns))

    def reset(self) -> None:
        """Takes all turns back; the system's message stays."""
        self.turns, self.forgotten = [], 0

    def _prompt(self, message: str) -> list[int]:
        """The ids that the model goes on from. Oldest turns make room, so that an answer may have some length."""
        most, forgotten = self._generator.max_length, self.forgotten
        room = min(self._max_new_tokens, most // 4)
        while True:
            messages = [*self.messages(forgotten), {"role": "user", "content": message}]
            ids = encode_chat(self._template, self._generator.tokenizer, messages, add_generation_prompt=True)
            if self._generator.limit(ids, room) == room or forgotten == len(self.turns):
                break
            forgotten += 1
        if len(ids) > most:
            raise UserError(f"this message makes {len(ids)} tokens, and the model reads {most}; say it in fewer words")
        self.forgotten = forgotten
        return ids
