"""How each byte-level vocabulary that GGUF names cuts text into words, before its merges."""

import json
from typing import Any, NamedTuple

import tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*END"
TEKKEN = CASED.replace("END", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT4O = CASED.replace("END", f"{CONTRACTION}?") + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)


class Words(NamedTuple):
    """A way of cutting."""

    patterns: tuple[str, ...]
    """Each cuts what the one before it left; what none of them matches is a word too."""
    nfc: bool = False
    """The text is composed (Unicode NFC) first. llama.cpp does not, the models' own tokenizers do."""
    ignore_merges: bool = False
    """A word that is a token needs no merges."""
    add_bos: bool = False
    """Where a file does not say whether a text begins with a special token."""


DIGITS = Words((r"\p{N}", GPT2))
CL100K = Words((LLAMA3,))

WORDS: dict[str, Words] = {
    "gpt-2": Words((GPT2,)),
    "phi-2": Words((GPT2,)),
    "olmo": Words((GPT2,), nfc=True),
    "mpt": Words((GPT2,), nfc=True),
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS._replace(nfc=True),
    "llama-bpe": Words((LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": Words((LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": Words((LLAMA3,), ignore_merges=True, add_bos=True),
    "falcon3": Words((LLAMA3,), ignore_merges=True, add_bos=True),
    "smaug-bpe": CL100K,
    "dbrx": CL100K,
    "qwen2": Words((QWEN2,), nfc=True),
    "deepseek-r1-qwen": Words((QWEN2,)),
    "stablelm2": Words((QWEN2,)),
    "tekken": Words((TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": Words((GPT4O,)),
    "deepseek-v3": Words((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", DEEPSEEK3)),
    "falcon": Words((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
"""By `tokenizer.ggml.pre`."""

OF_ARCHITECTURE = {
    "gpt2": "gpt-2",
    "gptneox": "olmo",
    "phi2": "phi-2",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "olmo2": "dbrx",
}
"""Of files older than `tokenizer.ggml.pre`, where all models of an architecture cut alike."""

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

PROBE = (
    "Hello, WORLD's  don't DON'T we'LL x2y 1 12 123 1234567 3.14  7 \u00bd\u00b2 _a__b (c)d/e\n\n  \n\tf\r\n g   \n"
    "caf\u00e9 cafe\u0301 \u4e2d\u6587\u5b57 \u3072\u3089\u304c\u306a \uac00\uac01 \u0905\u0902\u0915 "
    '\U0001f999\U0001f999 !!! ?x $5.00 a+b=c <|x|> #tag @me -- ... \'tis "q" \\n camelCase HTTPServer A1b2 '
    "   trailing   "
)
"""Text that the ways of cutting cut differently."""


def pre_tokenizer(words: Words) -> dict[str, Any]:
    """The entry `pre_tokenizer` of a `tokenizer.json`."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in words.patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*cuts, BYTE_LEVEL]}


def name_of_words(model: tokenizers.Tokenizer) -> str | None:
    """The name by which GGUF knows how `model` cuts; none if it does not."""
    wanted, nfc = _pieces(model), model.normalizer is not None and _composes(model)
    found: dict[bool, str] = {}
    for name, words in WORDS.items():
        made = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": pre_tokenizer(words)}
        if _pieces(tokenizers.Tokenizer.from_str(json.dumps(made))) == wanted:
            found.setdefault(words.nfc, name)
    return found.get(nfc, next(iter(found.values()), None))


def _pieces(model: tokenizers.Tokenizer) -> list[str]:
    return [piece for piece, _ in model.pre_tokenizer.pre_tokenize_str(PROBE)]


def _composes(model: tokenizers.Tokenizer) -> bool:
    return model.normalizer.normalize_str("e\u0301") == "\u00e9"
