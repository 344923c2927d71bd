"""The tokenizer of a Hugging Face folder, or a SentencePiece model, as metadata of a GGUF file."""

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers

from jaxllm.config import UserError
from jaxllm.interop.gguf.splits import WORDS, name_of_words
from jaxllm.interop.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    ROLES,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class Token(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    kind: int
    score: float = 0.0


def tokenizer_metadata(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the tokenizer and the chat template in `files`, by their whole names.

    Args:
        files: a `tokenizer.json` or a SentencePiece `tokenizer.model`, with `tokenizer_config.json`,
            `generation_config.json` and `chat_template.jinja` if there are such.
        config: the model's, of whose `vocab_size` tokens those that the tokenizer lacks are filled up.

    Raises:
        UserError: there is no tokenizer, GGUF has none of its kind, or it has more tokens than the model.
    """
    named = _parsed(files, "tokenizer_config.json")
    if "tokenizer.json" in files:
        metadata, tokens = _hugging_face(files, named)
    elif "tokenizer.model" in files:
        metadata, tokens = _sentencepiece(files["tokenizer.model"], named)
    else:
        raise UserError("the model has no tokenizer.json or tokenizer.model: a GGUF file must hold its tokenizer")
    size = config["vocab_size"]
    if max(tokens) >= size:
        raise UserError(f"the tokenizer has {max(tokens) + 1:,} tokens, and the model's vocab_size is {size:,}")
    filled = [tokens.get(i, Token(f"[PAD{i}]", UNUSED)) for i in range(size)]
    metadata["tokenizer.ggml.tokens"] = [token.text for token in filled]
    metadata["tokenizer.ggml.token_type"] = [token.kind for token in filled]
    if metadata["tokenizer.ggml.model"] == "llama":
        metadata["tokenizer.ggml.scores"] = [token.score for token in filled]
    metadata |= _special(tokens, named, _parsed(files, "generation_config.json"), config)
    template = _template(files, named)
    return metadata | ({"tokenizer.chat_template": template} if template else {})


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} holds no object of JSON")
    return content


def _hugging_face(files: Mapping[str, bytes], named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Token]]:
    content = _parsed(files, "tokenizer.json")
    try:
        model = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # the library raises the bare base class
        raise UserError(f"tokenizer.json cannot be read ({error}): it is damaged or of another kind") from None
    if content["model"].get("type", "BPE") != "BPE" or "merges" not in content["model"]:
        kind = content["model"].get("type")
        raise UserError(f"tokenizer.json holds a {kind} model: GGUF is written with BPE, on bytes or SentencePiece's")
    by_bytes = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    metadata = _byte_level(model, content) if by_bytes else _spaced(model, content)
    for role, begins in {"bos": 0, "eos": -1}.items():
        token = _content(named.get(f"{role}_token"))
        ids = model.encode("a").ids
        adds = named.get(f"add_{role}_token")
        if adds is None:
            adds = token is not None and len(ids) > 1 and ids[begins] == model.token_to_id(token)
        metadata[f"tokenizer.ggml.add_{role}_token"] = bool(adds) and token is not None
    return metadata, _tokens(model, content, by_bytes)


def _byte_level(model: tokenizers.Tokenizer, content: Mapping[str, Any]) -> dict[str, Any]:
    name = name_of_words(model)
    if name is None:
        raise UserError(f"tokenizer.json cuts text into words in a way GGUF has no name for; it has {', '.join(WORDS)}")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _spaced(model: tokenizers.Tokenizer, content: Mapping[str, Any]) -> dict[str, Any]:
    if not content["model"].get("byte_fallback"):
        raise UserError(
            "tokenizer.json holds a BPE model neither on bytes nor with byte_fallback: GGUF has no such one"
        )
    prefix = model.encode("a", add_special_tokens=False).tokens[:1] != ["a"]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": prefix}


def _tokens(model: tokenizers.Tokenizer, content: Mapping[str, Any], by_bytes: bool) -> dict[int, Token]:
    added = {entry["id"]: entry for entry in content.get("added_tokens") or []}
    ranks = {} if by_bytes else _ranks(content["model"]["merges"])
    unknown, tokens = content["model"].get("unk_token"), {}
    for text, i in model.get_vocab(with_added_tokens=True).items():
        if text == unknown:
            tokens[i] = Token(text, UNKNOWN)
        elif i in added:
            special = added[i].get("special")
            tokens[i] = Token(text, CONTROL) if special else _user_defined(text, by_bytes)
        elif not by_bytes and BYTE_TOKEN.fullmatch(text):
            tokens[i] = Token(text, BYTE)
        else:
            tokens[i] = Token(text, NORMAL, -float(ranks.get(text, len(ranks))))
    return tokens


def _user_defined(text: str, by_bytes: bool = False) -> Token:
    """As llama.cpp finds it in a text, in which spaces are spaces."""
    return Token(text if by_bytes else text.replace(SPACE, " "), USER_DEFINED)


def _ranks(merges: list[Any]) -> dict[str, int]:
    """For each token the first merge that makes it, by which SentencePiece's scores are in order."""
    ranks: dict[str, int] = {}
    for i, merge in enumerate(merges):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), i)
    return ranks


def _sentencepiece(model: bytes, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, Token]]:
    proto = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's own
        raise UserError(f"tokenizer.model cannot be read ({error}): it is damaged or of another kind") from None
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type).lower()
        raise UserError(f"tokenizer.model is of the type '{kind}': GGUF is written with SentencePiece's 'bpe'")
    begins = named.get("add_bos_token")
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.add_bos_token": proto.trainer_spec.bos_id >= 0 if begins is None else bool(begins),
        "tokenizer.ggml.add_eos_token": bool(named.get("add_eos_token")),
    }
    ids = {"bos": proto.trainer_spec.bos_id, "eos": proto.trainer_spec.eos_id, "padding": proto.trainer_spec.pad_id}
    metadata |= {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i >= 0}
    return metadata, {
        i: _user_defined(entry.piece) if entry.type == USER_DEFINED else Token(entry.piece, entry.type, entry.score)
        for i, entry in enumerate(proto.pieces)
    }


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _special(
    tokens: Mapping[int, Token], named: Mapping[str, Any], generation: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    """The ids of the special tokens: as the tokenizer names them, else as generation does, else the model."""
    by_text = {tokens[i].text: i for i in sorted(tokens, reverse=True)}  # of those spelled alike the first
    found: dict[str, int] = {}
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    for role, name in ROLES.items():
        i = by_text.get(_content(named.get(f"{role}_token")) or "")
        if i is None:
            i = ends[0] if role == "eos" else generation.get(f"{role}_token_id", config.get(f"{role}_token_id"))
        if i is not None:
            found[name] = i
    others = [i for i in ends if i is not None and i != found.get("eos")]
    found |= dict(zip(("eot", "eom"), others, strict=False))
    for name, i in found.items():
        if i not in tokens:
            raise UserError(f"the {name} token has the id {i}, and the tokenizer {max(tokens) + 1:,} tokens")
    return {f"tokenizer.ggml.{name}_token_id": i for name, i in found.items()}


def _template(files: Mapping[str, bytes], named: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    template = named.get("chat_template")
    if isinstance(template, list):  # several, by their names
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
