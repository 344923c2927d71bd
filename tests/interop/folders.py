"""Tiny published models in folders, with their tokenizers."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.interop.gguf.models import config_of, files_of, tensors_of
from tests.interop.tiny import published

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def decoder(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """Makes a folder as Hugging Face's libraries do."""
    config = config_of(model_type, **changes)
    further = {
        "chat_template.jinja": TEMPLATE.encode(),
        "additional_chat_templates/tool_use.jinja": TEMPLATE.encode(),
        "generation_config.json": json.dumps({"eos_token_id": [0, 1], "temperature": 0.5}).encode(),
    }
    return _made(folder, config, tensors_of(config), {**files_of(), **further})


def encoder(folder: Path) -> Path:
    """The same of the BERT of a fixture, with few of its words."""
    model = published("bert")
    arrays = {name: model.read(name) for name in model.tensors}
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    files = {
        "tokenizer.json": _word_piece().to_str().encode(),
        "modules.json": b"[]",
        "1_Pooling/config.json": json.dumps(pooling).encode(),
        "sentence_bert_config.json": json.dumps({"max_seq_length": 12}).encode(),
    }
    return _made(folder, dict(model.config), arrays, files)


def _word_piece() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "name", "##s", "print", "##ing", "a", "of", "the"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(pieces[:5])
    return made


def _made(folder: Path, config: dict[str, Any], arrays: dict[str, Any], files: dict[str, bytes]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
