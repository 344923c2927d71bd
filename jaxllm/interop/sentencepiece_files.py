"""A SentencePiece model as the files of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.interop.gguf.header import Header
from jaxllm.interop.gguf.tokenizer import tokenizer_files
from jaxllm.interop.gguf.vocabulary import tokenizer_metadata


def hugging_face_files(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, bytes]:
    """`files`, and where they hold a `tokenizer.model` alone, `tokenizer.json` and what belongs to it.

    A GGUF file describes both kinds of tokenizers, so that what writes and reads it leads from one to the other.

    Args:
        files: of a model's folder.
        config: for `config.json`; its `vocab_size` is that of the model.

    Raises:
        UserError: it is no BPE model.
    """
    if "tokenizer.json" in files or "tokenizer.model" not in files:
        return dict(files)
    metadata = tokenizer_metadata(files, config)
    numbers = {key: np.asarray(metadata[key]) for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")}
    metadata |= {**numbers, "general.architecture": "llama"}
    made = tokenizer_files(Header(Path("tokenizer.model"), metadata, {}), config.get("max_position_embeddings", 0))
    return {**made, **files}
