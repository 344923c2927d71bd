"""Tokenizers: SentencePiece models and Hugging Face `tokenizer.json` files behind one interface."""

import functools
import hashlib
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path
from jaxllm.config import UserError

SPACE = "\u2581"
"""What SentencePiece writes for a space inside its pieces."""

USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]"),
    "pad": ("<pad>", "<|finetune_right_pad_id|>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "unk": ("<unk>", "[UNK]"),
}
"""Spellings of a special token, tried in turn where no file names it."""

NAMED = {"bos": ("bos_token", "cls_token"), "eos": ("eos_token", "sep_token")}
"""Keys of `tokenizer_config.json`; BERT's own come second, since BART has both."""

WORD_STARTS = frozenset(SPACE + string.whitespace)
"""The first characters of pieces that begin a word."""

BYTE_LEVEL_STARTS = frozenset(map(chr, range(0x109, 0x10E))) | {"\u0120"}
"""The same as byte-level BPE writes them: from the tab to the carriage return, and the space."""


class Tokenizer(ABC):
    """Text to token ids and back. Special tokens are made by their id or by `encode_with_specials`, not by `encode`."""

    vocab_size: int
    """Ids run from 0 to `vocab_size - 1`."""
    bos_id: int
    """Begins each document."""
    eos_id: int
    """Ends each document."""
    pad_id: int
    """Fills rows; `eos_id` where the vocabulary has no such token, since padding is masked and never read."""
    mask_id: int | None
    """Stands for what is hidden; none if the vocabulary does not have it."""
    begins: bool
    """By its own rule a text begins with `bos_id`."""
    specials: frozenset[str]
    """Spellings of the tokens that no text is: begin, end and padding, and those that mark the turns of a chat."""
    fingerprint: str
    """A hash of the file's content: equal fingerprints give equal tokens."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without begin and end of document."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text; several threads may call it at once."""
        return [self.encode(text) for text in texts]

    def encode_with_specials(self, *parts: str) -> list[int]:
        """The ids of the parts, which together are one text, without begin and end of document.

        A special token that is spelled in the first part is that token, as in transformers' `apply_chat_template`; in
        the second part it is text, in the third the token again, and so on.
        """
        return [i for ids in self.encode_parts(*parts) for i in ids]

    @abstractmethod
    def encode_parts(self, *parts: str) -> list[list[int]]:
        """The ids of each part, which are not of the same token; otherwise as `encode_with_specials`."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens, and ids past the vocabulary (models pad it), give nothing."""
        return self._decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def token_id(self, name: str) -> int | None:
        """The id of the token spelled `name`, such as `<|user|>`; none if the vocabulary does not have it."""

    @abstractmethod
    def special_ids(self) -> set[int]:
        """Ids that stand for no text: control tokens, what is unknown, and numbers without a token."""

    @abstractmethod
    def word_starts(self) -> list[bool] | None:
        """Of each id whether it begins a word, where text is cut at spaces; none if the vocabulary does not tell."""

    @abstractmethod
    def token_name(self, i: int) -> str:
        """How the token `i` is spelled; nothing where the vocabulary has no such token."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a `.model` (SentencePiece) or `tokenizer.json` (Hugging Face) file.

    Raises:
        UserError: the file is missing, is of another kind, is damaged, or has no end-of-document token.
    """
    path = user_path(path)
    if path.suffix not in (".model", ".json"):
        raise UserError(
            f"tokenizer '{path}': expected a SentencePiece '.model' or a Hugging Face 'tokenizer.json' file"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the tokenizer '{path}': {error.strerror}") from None
    try:
        tokenizer = SentencePieceTokenizer(content) if path.suffix == ".model" else HuggingFaceTokenizer(path, content)
    except UserError:
        raise
    except Exception as error:  # both libraries raise their bare base classes
        raise UserError(f"tokenizer '{path}' cannot be read ({error}): it is damaged or of another kind") from None
    if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
        raise UserError(f"tokenizer '{path}' has no end-of-document token")
    return tokenizer


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece (1808.06226)."""

    def __init__(self, content: bytes):
        if not content:
            raise ValueError("the file is empty")
        self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.vocab_size = self._model.vocab_size()
        self.eos_id = self._model.eos_id()
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else self.eos_id
        self.begins = True
        self.pad_id = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        self.mask_id = next((i for i in map(self.token_id, USUAL["mask"]) if i is not None), None)
        self.fingerprint = hashlib.blake2b(content, digest_size=16).hexdigest()
        # SentencePiece reads a literal U+2581 as a space. Where the model has bytes, and adds no space of its
        # own at the start (which would be repeated after each cut), the character is spelled in bytes
        # instead.
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._exact = all(map(self._model.is_byte, self._space_ids)) and self._model.normalize("a") == "a"
        self._content = content
        self._special_ids = {self._model.id_to_piece(i): i for i in range(self.vocab_size) if self._model.is_control(i)}
        self.specials = frozenset(self._special_ids)

    def encode(self, text: str) -> list[int]:
        return self._encode(text, self._model)

    def _encode(self, text: str, model: sentencepiece.SentencePieceProcessor) -> list[int]:
        if not (self._exact and SPACE in text):
            return model.encode(text)
        ids, *rest = map(model.encode, text.split(SPACE))
        for part in rest:
            ids += self._space_ids + part
        return ids

    @functools.cached_property
    def _going_on(self) -> sentencepiece.SentencePieceProcessor:
        """The model for text with something before it: `add_dummy_prefix` is false in what is appended, and wins."""
        return sentencepiece.SentencePieceProcessor(model_proto=self._content + b"\x1a\x02\x18\x00")

    def encode_parts(self, *parts: str) -> list[list[int]]:
        special = re.compile(f"({any_of(self.specials)})")
        found: list[list[int]] = []
        for number, part in enumerate(parts):
            ids: list[int] = []
            for i, piece in enumerate(special.split(part) if number % 2 == 0 else [part]):
                if i % 2:
                    ids.append(self._special_ids[piece])
                elif piece:
                    ids += self._encode(piece, self._going_on if ids or any(found) else self._model)
            found.append(ids)
        return found

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def token_id(self, name: str) -> int | None:
        i = self._model.piece_to_id(name)
        return i if self._model.id_to_piece(i) == name else None

    def special_ids(self) -> set[int]:
        model = self._model
        return {i for i in range(self.vocab_size) if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)}

    def word_starts(self) -> list[bool] | None:
        spaces = {f"<0x{ord(space):02X}>" for space in string.whitespace}
        pieces = map(self._model.id_to_piece, range(self.vocab_size))
        return [piece in spaces or piece[:1] in WORD_STARTS for piece in pieces]

    def token_name(self, i: int) -> str:
        return self._model.id_to_piece(i) if 0 <= i < self.vocab_size else ""


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`; a `tokenizer_config.json` beside it says which tokens begin, end and pad."""

    def __init__(self, path: Path, content: bytes):
        self._content = content.decode()
        self._model = self._loaded()
        self._model.encode_special_tokens = True  # text that spells a special token stays text
        added = self._model.get_added_tokens_decoder().values()
        self.specials = frozenset(token.content for token in added if token.special)
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        beside = path.with_name("tokenizer_config.json")
        named = read_json(beside, dict) if beside.is_file() else {}
        texts = {role: _named_token(named, role, beside) for role in USUAL}
        self.eos_id = self._special("eos", texts, -1)
        self.bos_id = self._special("bos", texts, self.eos_id)
        said = named.get("add_bos_token")
        self.begins = self._model.encode("a").ids[:1] == [self.bos_id] if said is None else bool(said)
        self.pad_id = self._special("pad", texts, self.eos_id)
        mask_id = self._special("mask", texts, -1)
        self.mask_id = None if mask_id < 0 else mask_id
        ids = f"{self.bos_id},{self.eos_id},{self.pad_id}".encode()
        self.fingerprint = hashlib.blake2b(content + ids, digest_size=16).hexdigest()

    def _loaded(self) -> tokenizers.Tokenizer:
        model = tokenizers.Tokenizer.from_str(self._content)
        model.no_truncation()
        model.no_padding()
        return model

    @functools.cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:
        return self._loaded()

    def _special(self, role: str, texts: Mapping[str, str | None], default: int) -> int:
        text = texts[role]
        found = map(self._model.token_to_id, USUAL[role] if text is None else [text])
        return next((i for i in found if i is not None), default)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_parts(self, *parts: str) -> list[list[int]]:
        found: list[list[int]] = []
        for i, part in enumerate(parts):
            model = self._model if i % 2 else self._with_specials
            begins = not any(found)
            found.append(model.encode(part, add_special_tokens=False).ids if begins else _going_on(model, part))
        return found

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=True)

    def token_id(self, name: str) -> int | None:
        return self._model.token_to_id(name)

    def special_ids(self) -> set[int]:
        named = {self.bos_id, self.eos_id, self.pad_id, self.mask_id, *map(self.token_id, USUAL["unk"])}
        added = {i for i, token in self._model.get_added_tokens_decoder().items() if token.special}
        missing = {i for i in range(self.vocab_size) if self._model.id_to_token(i) is None}
        return {i for i in named | added | missing if i is not None}

    def word_starts(self) -> list[bool] | None:
        pieces = [self._model.id_to_token(i) or "" for i in range(self.vocab_size)]
        if isinstance(self._model.model, tokenizers.models.WordPiece):  # it marks what goes on with a word
            return [not piece.startswith(self._model.model.continuing_subword_prefix) for piece in pieces]
        marks = WORD_STARTS if any(piece.startswith(SPACE) for piece in pieces) else BYTE_LEVEL_STARTS
        starts = [piece[:1] in marks for piece in pieces]
        return starts if any(starts) else None

    def token_name(self, i: int) -> str:
        return self._model.id_to_token(i) or ""


def _named_token(named: Mapping[str, Any], role: str, where: Path) -> str | None:
    """The text of a special token, if the file `where`, which holds `named`, has one."""
    token = next(filter(None, map(named.get, NAMED.get(role, (f"{role}_token",)))), None)
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise UserError(f"'{where}': the {role} token is {token!r:.60}: expected its text")
    return text


def _going_on(model: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of `text` with something before it: a tokenizer may put a space at the beginning of a text only.

    A line break that stays a token of its own is put before it, and its ids are taken off again.
    """
    if not text:
        return []
    before, whole = (model.encode(t, add_special_tokens=False).ids for t in ("\n", "\n" + text))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return model.encode(text, add_special_tokens=False).ids


def any_of(names: Iterable[str]) -> str:
    """A regular expression for any of `names`; of those that begin alike the longest counts."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"


class StreamDecoder:
    """Decodes ids as they come and gives only text that later ids cannot change.

    A character may be spread over several tokens, and a tokenizer may treat the first token of a text
    differently; so each new piece of text is what the last finished ids and the new ones decode to, beyond
    what the former alone do. All that `feed` and `finish` returned, joined, is `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        """`before` are the ids of whole text that comes before and is not given again."""
        self._tokenizer = tokenizer
        self._context: list[int] = list(before)
        self._pending: list[int] = []

    def feed(self, *ids: int) -> str:
        """The text that `ids` make final; empty while a character is incomplete."""
        self._pending += ids
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """What was held back: the replacement character for bytes that no character begins with."""
        text = self._new_text()
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]
