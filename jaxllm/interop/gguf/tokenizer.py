"""The tokenizer in the metadata of a GGUF file as the files of a Hugging Face folder."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxllm.config import UserError
from jaxllm.interop.gguf.header import Header
from jaxllm.interop.gguf.splits import BYTE_LEVEL, OF_ARCHITECTURE, WORDS, Words, pre_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of tokens, which are SentencePiece's."""

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens in Hugging Face's words and in GGUF's."""

FILLER = re.compile(r"\[PAD(\d+)\]")
"""What llama.cpp calls a row of the embedding that has no token."""


def tokenizer_files(header: Header, context: int) -> dict[str, bytes]:
    """`tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`, if there is one.

    Args:
        header: of the file.
        context: the longest sequence that the model is meant for.

    Raises:
        UserError: there is no tokenizer, it is of a kind that is not known here, or it is damaged.
    """
    builders: dict[str, Callable[[Header, list[str], list[int]], dict[str, Any]]]
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if "tokenizer.ggml.model" not in header.metadata:
        raise UserError(f"'{header.path}' has no tokenizer: its metadata have no 'tokenizer.ggml.model'")
    kind = header.text("tokenizer.ggml.model")
    if kind not in builders:
        known = "'gpt2' (byte-level BPE) and 'llama' (SentencePiece BPE) are read"
        raise UserError(f"'{header.path}': tokenizer.ggml.model is '{kind}'; {known}")
    tokens, types = header.texts("tokenizer.ggml.tokens"), _types(header)
    if kind == "llama":
        tokens = _respelled(tokens, types)
    ids = _special_ids(header, tokens, kind)
    adds = {role: _adds(header, role, kind) and role in ids for role in ("bos", "eos")}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "post_processor": _template({role: tokens[ids[role]] for role in adds if adds[role]}, ids),
        **builders[kind](header, tokens, types),
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    config |= {f"{role}_token": tokens[i] for role, i in ids.items() if role in ROLES}
    config |= {f"add_{role}_token": value for role, value in adds.items()} | {"clean_up_tokenization_spaces": False}
    files = {
        "tokenizer.json": _json(made),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json(_generation(ids)),
    }
    if "tokenizer.chat_template" in header.metadata:
        files["chat_template.jinja"] = header.text("tokenizer.chat_template").encode()
    return files


def special_token_ids(header: Header) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as they stand in `config.json`."""
    tokens = header.texts("tokenizer.ggml.tokens")
    ids = _special_ids(header, tokens, header.text("tokenizer.ggml.model"))
    return {f"{role}_token_id": ids.get(role) for role in ("bos", "eos", "pad")}


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _types(header: Header) -> list[int]:
    tokens = header.texts("tokenizer.ggml.tokens")
    if "tokenizer.ggml.token_type" not in header.metadata:
        return [NORMAL] * len(tokens)
    types = header.numbers("tokenizer.ggml.token_type")
    _same_length(header, "token_type", types, tokens)
    return [
        UNUSED if match and int(match[1]) == i else kind
        for i, (kind, match) in enumerate(zip(types, map(FILLER.fullmatch, tokens), strict=True))
    ]


def _same_length(header: Header, name: str, values: Sequence[Any], tokens: list[str]) -> None:
    if len(values) != len(tokens):
        raise UserError(
            f"'{header.path}': tokenizer.ggml.{name} has {len(values):,} entries for {len(tokens):,} tokens"
        )


def _special_ids(header: Header, tokens: list[str], kind: str) -> dict[str, int]:
    # Files older than these metadata mean what llama.cpp takes for SentencePiece's usual ones.
    usual = {"bos": 1, "eos": 2, "unk": 0} if kind == "llama" else {}
    ids = {}
    for role, name in {**ROLES, "eot": "eot", "eom": "eom"}.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in header.metadata or role in usual:
            ids[role] = header.whole(key, usual.get(role))
            if ids[role] >= len(tokens):
                raise UserError(f"'{header.path}': {key} is {ids[role]}; the tokenizer has {len(tokens):,} tokens")
    return ids


def _adds(header: Header, role: str, kind: str) -> bool:
    usual = kind == "llama" or _words(header).add_bos
    return header.flag(f"tokenizer.ggml.add_{role}_token", usual and role == "bos")


def _generation(ids: Mapping[str, int]) -> dict[str, Any]:
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
    found = {"bos_token_id": ids.get("bos"), "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    return {key: value for key, value in {**found, "pad_token_id": ids.get("pad")}.items() if value is not None}


def _added(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _respelled(tokens: list[str], types: list[int]) -> list[str]:
    """Runs of spaces, which llama.cpp's converter takes out of SentencePiece's spelling, in it again."""
    pairs = zip(tokens, types, strict=True)
    return [SPACE * len(token) if kind == USER_DEFINED and not token.strip(" ") else token for token, kind in pairs]


def _is_run(token: str, kind: int) -> bool:
    """Whether it is a run of spaces that SentencePiece makes before all merges, and Hugging Face by the first ones."""
    return kind == USER_DEFINED and not token.strip(SPACE)


def _template(special: Mapping[str, str], ids: Mapping[str, int]) -> dict[str, Any] | None:
    if not special:
        return None

    def sequence(name: str, number: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", special.get("bos")), ("Sequence", name), ("SpecialToken", special.get("eos"))]
        return [{kind: {"id": part, "type_id": number}} for kind, part in parts if part is not None]

    entries = {token: {"id": token, "ids": [ids[role]], "tokens": [token]} for role, token in special.items()}
    pair = sequence("A", 0) + sequence("B", 1)
    return {"type": "TemplateProcessing", "single": sequence("A", 0), "pair": pair, "special_tokens": entries}


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token to id, without the fillers; of tokens that are spelled alike the first."""
    vocabulary: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != UNUSED or not FILLER.fullmatch(token):
            vocabulary.setdefault(token, i)
    return vocabulary


def _model(**fields: Any) -> dict[str, Any]:
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **plain, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **fields}


def _words(header: Header) -> Words:
    arch = header.text("general.architecture")
    name = header.text("tokenizer.ggml.pre", OF_ARCHITECTURE.get(arch, ""))
    if name not in WORDS and header.metadata.get("tokenizer.ggml.model") == "gpt2":
        known = ", ".join(sorted(WORDS))
        raise UserError(
            f"'{header.path}': tokenizer.ggml.pre is '{name}', a cut into words not known here; {known} are"
        )
    return WORDS.get(name, Words(()))


def _byte_level(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    words, vocabulary, merges = _words(header), _vocabulary(tokens, types), []
    for merge in header.texts("tokenizer.ggml.merges"):
        left, right = merge[:1], merge[1:]
        if " " in right:
            rest, _, right = right.partition(" ")
            left += rest
        if not {left, right, left + right} <= vocabulary.keys():
            raise UserError(
                f"'{header.path}': tokenizer.ggml.merges has '{merge}', whose tokens are not in the vocabulary"
            )
        merges.append((left, right))
    return {
        "normalizer": {"type": "NFC"} if words.nfc else None,
        "pre_tokenizer": pre_tokenizer(words),
        "decoder": BYTE_LEVEL,
        "model": _model(vocab=vocabulary, merges=merges, ignore_merges=words.ignore_merges),
    }


def _sentencepiece(header: Header, tokens: list[str], types: list[int]) -> dict[str, Any]:
    vocabulary = _vocabulary(tokens, types)
    scores = header.numbers("tokenizer.ggml.scores") if "tokenizer.ggml.scores" in header.metadata else []
    # A Gemma's tokens are in the order of their merges, which its scores are not.
    if not scores or header.text("general.architecture").startswith("gemma"):
        scores = [-float(i) for i in range(len(tokens))]
    _same_length(header, "scores", scores, tokens)
    merged = {token: scores[i] for token, i in vocabulary.items() if types[i] == NORMAL}
    merged |= {token: math.inf for token, i in vocabulary.items() if _is_run(token, types[i])}
    prefix = header.flag("tokenizer.ggml.add_space_prefix", True)
    to_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    from_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, to_space] if prefix else [to_space],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [from_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _model(
            vocab=vocabulary, merges=list(_merges(merged)), unk_token=unknown, fuse_unk=True, byte_fallback=True
        ),
    }


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Each way to make a token of two others, in the order in which SentencePiece prefers them."""
    ways = [
        (score, cut, len(token) - cut, token)
        for token, score in scores.items()
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    ways.sort(key=lambda way: way[:3], reverse=True)
    return ((token[:cut], token[cut:]) for _, cut, _, token in ways)
