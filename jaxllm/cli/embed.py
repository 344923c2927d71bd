"""`jaxllm embed`: embeddings of lines of text."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from jaxllm.cli.progress import Progress
from jaxllm.common.paths import user_path, whole_file
from jaxllm.config import UserError


@dataclass(frozen=True, kw_only=True)
class Command:
    """Embed each line of a text with an encoder, such as all-MiniLM-L6-v2."""

    model: tyro.conf.Positional[str]
    """A model folder, or the folder of a run."""
    text: tyro.conf.Positional[str] = "-"
    """A file of lines; `-` is the standard input."""
    out: str | None = None
    """`.npy` for one array [lines, width] in float32, else `.jsonl` with an object `text`, `embedding` a line; none
    writes such lines to the standard output."""
    pooling: Literal["auto", "mean", "first", "pooler"] = "auto"
    """The mean of all tokens, the first one, or that through the model's pooler; auto is what the model's files say."""
    normalise: bool | None = None
    """Divide by the length, so that products are cosines; none is what the model's files say."""
    max_tokens: int | None = None
    """Of a line; what is beyond is left out. None is what the model's files say, or its positions."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products; auto is float32 on CPU and bfloat16 elsewhere. On a CPU bfloat16 is faster with jax
    0.12, where it is multiplied in hardware, and slower with jax 0.10."""


def run(argv: list[str]) -> int:
    """Writes the embeddings, whole or not at all, and on the standard error how long they took.

    Raises:
        UserError: a model, text or place that will not do.
    """
    command = tyro.cli(Command, args=argv, prog="jaxllm embed")
    if command.out is not None and not command.out.endswith((".npy", ".jsonl")):
        raise UserError(f"--out {command.out}: expected a name that ends in .npy or .jsonl")
    lines, folder = _lines(command.text), user_path(command.model)

    import dataclasses

    import numpy as np

    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.generation.embedding import Embedder, published_pooling
    from jaxllm.models.transformer import dtype_for_use
    from jaxllm.train.params import load_run_params
    from jaxllm.train.run_folder import saved_tokenizer

    dtype = dtype_for_use(None if command.dtype == "auto" else command.dtype)
    config, params, info = load_run_params(folder, dtype=dtype)
    tokenizer = load_tokenizer(path := saved_tokenizer(folder))
    info.check_tokenizer(tokenizer.fingerprint, path)
    given = {"kind": command.pooling, "normalise": command.normalise, "max_tokens": command.max_tokens}
    asked = {field: value for field, value in given.items() if value not in (None, "auto")}
    pooling = dataclasses.replace(published_pooling(folder), **asked)  # type: ignore[arg-type]
    embedder = Embedder(config.model, params, tokenizer, pooling, dtype)
    del params
    began = time.perf_counter()
    vectors = embedder.embed(lines, Progress("embedding", "lines", len(lines)))
    seconds = time.perf_counter() - began
    if command.out is None:
        for line, vector in zip(lines, vectors, strict=True):
            print(_object(line, vector.tolist()))
    else:
        with whole_file(user_path(command.out)) as writing:
            if command.out.endswith(".npy"):
                with open(writing, "wb") as file:
                    np.save(file, vectors)
            else:
                with open(writing, "w") as text:
                    text.writelines(_object(*pair) + "\n" for pair in zip(lines, vectors.tolist(), strict=True))
    print(
        f"[{len(lines):,} lines in {seconds:.1f} s, compiling included; {len(lines) / seconds:,.0f} lines/s]",
        file=sys.stderr,
    )
    return 0


def _lines(name: str) -> list[str]:
    """
    Raises:
        UserError: the text cannot be read, is not UTF-8, or has no line.
    """
    try:
        text = sys.stdin.read() if name == "-" else user_path(name).read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read '{name}': {error.strerror}") from None
    except UnicodeError as error:
        raise UserError(f"'{name}' is not UTF-8 text: {error}") from None
    if not text:
        raise UserError(f"'{name}' has no line of text")
    return text.removesuffix("\n").split("\n")


def _object(line: str, vector: Sequence[float]) -> str:
    return json.dumps({"text": line, "embedding": vector}, ensure_ascii=False)
