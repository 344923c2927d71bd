"""From one row's tokens to text that is final as it streams."""

from collections.abc import Collection, Sequence
from typing import Literal

from jaxllm.data.tokenizer import StreamDecoder, Tokenizer

Finish = Literal["eos", "stop", "length"]
"""Why a text ended: by a token that ends it, a stop string, or because no more tokens were allowed."""


class TextStream:
    """The text of a row, token by token, until it ends.

    Text is given as soon as no later token can change or drop it: an incomplete character is held back, and so
    is what may become a stop string. The stop string itself is not part of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        limit: int,
        stop: Sequence[str] = (),
        ends: Collection[int] | None = None,
    ):
        """
        Args:
            tokenizer: decodes.
            prompt: the tokens before this text, which decide whether it begins with a space.
            limit: tokens after which it ends.
            stop: strings that end it.
            ends: tokens that end it; none means the end-of-document token.
        """
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self._ends = (tokenizer.eos_id,) if ends is None else ends
        self._limit, self._stop = limit, tuple(stop)
        self._decoder = StreamDecoder(tokenizer, prompt)
        self._held = ""

    def feed(self, token: int) -> str:
        """The text that `token` makes final. Once it has ended, nothing."""
        if self.finish is not None:
            return ""
        self.tokens.append(token)
        if token in self._ends:
            self.finish = "eos"
        else:
            self._held += self._decoder.feed(token)
            if len(self.tokens) == self._limit:
                self.finish = "length"
        if self.finish is not None:
            self._held += self._decoder.finish()
        piece = self._release()
        self.text += piece
        return piece

    def _release(self) -> str:
        """Takes from what is held all that is final, up to the first stop string."""
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.finish = "stop"
            keep = min(found)
        elif self.finish is not None:
            keep = len(self._held)
        else:
            keep = len(self._held) - max((_overlap(self._held, s) for s in self._stop), default=0)
        piece, self._held = self._held[:keep], self._held[keep:]
        return piece


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
