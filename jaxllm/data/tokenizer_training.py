"""Trains a SentencePiece tokenizer that gives every text back exactly."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from jaxllm.config import TokenizerConfig, UserError

CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
"""Reserved after `<unk>`, `<s>`, `</s>` and `<pad>` (ids 0 to 3) and before the run's own; no text makes them."""

TABS = tuple("\t" * n for n in (2, 3, 4))
"""Runs of tabs that are one token; SentencePiece needs the tab for itself while it trains and finds none."""

SENTENCE = 4096
"""Characters of text that the trainer sees at once."""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, out: Path) -> None:
    """Trains on `texts` and writes the model to `out`; equal texts give an equal file.

    Text is not normalised, bytes stand in for rare characters, digits are single tokens, and runs of spaces
    and line ends may be one token, so that indented code is short and decoding gives back what was encoded.
    Tokens may join letters and punctuation (`self.`, `):`), which is worth 7 % fewer tokens on Python source.

    Raises:
        UserError: `config.vocab_size` is more than this text allows, or less than its characters need.
        OSError: `out` cannot be written.
    """
    model = io.BytesIO()
    sentences = (sentence for text in texts for sentence in _sentences(text))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,
            split_digits=True,
            max_sentence_length=8 * SENTENCE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=[*CHAT_TOKENS, *config.extra_tokens],
            user_defined_symbols=list(TABS),
            num_threads=4,  # fixed: the unigram trainer adds up its counts in an order that depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config.vocab_size) from None
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.getvalue())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _sentences(text: str) -> Iterator[str]:
    """`text` in pieces of at most `SENTENCE` characters, cut after line ends where there is one."""
    start = 0
    while start < len(text):
        stop = start + SENTENCE
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop


def _explained(error: RuntimeError, vocab_size: int) -> UserError:
    message = str(error)
    if most := re.search(r"too high .*<= (\d+)", message):
        return UserError(f"tokenizer.vocab_size {vocab_size} is more than this text allows; the most is {most[1]}")
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(f"tokenizer.vocab_size {vocab_size} is less than this text needs; the least is {least[1]}")
    if twice := re.search(r"(\S+) is already defined", message):
        return UserError(f"tokenizer.extra_tokens: every trained tokenizer has {twice[1]!r}; leave it out")
    if "sentences_.empty()" in message:
        return UserError("there is no text to train the tokenizer on")
    return UserError(f"SentencePiece could not train: {message}")
