"""Lines a second that an encoder embeds, ours against transformers and sentence-transformers, in one run.

    jaxllm export models/all-minilm-l6-v2 minilm && pip install -e .[bench] sentence-transformers
    python tools/bench_embed.py models/all-minilm-l6-v2 minilm TEXT

The lines of a text are embedded by `Embedder.embed`, which packs them into rows, and by batches of transformers'
`AutoModel` with the mean of the hidden states: lines in the order of their lengths, which is how sentence-transformers
has them, padded to the longest of each batch. Each side tokenises. They live through the whole run and take turns after
a warm-up; the vectors of both must agree. The README's first figures are of the lines of `pydoc_data.topics.topics` of
Python 3.11, sorted and joined by blank lines; the others of the questions of GSM8K's test set, one a line.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import Worker, answers

BATCH = 32
"""Lines of transformers at once, sentence-transformers' own default."""


def ours(options: argparse.Namespace) -> tuple[str, Callable[[list[str]], Any]]:
    """What `jaxllm embed` runs."""
    import jax

    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.generation.embedding import Embedder, published_pooling
    from jaxllm.train.params import load_run_params
    from jaxllm.train.run_folder import saved_tokenizer

    config, params, _ = load_run_params(options.model)
    tokenizer = load_tokenizer(saved_tokenizer(options.model))
    embedder = Embedder(config.model, params, tokenizer, published_pooling(options.model), options.dtype)
    return f"jax {jax.__version__}", embedder.embed


def theirs(options: argparse.Namespace) -> tuple[str, Callable[[list[str]], Any]]:
    """The usual loop around `AutoModel`, at its fastest: lines of one length together."""
    import numpy as np
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.published)
    model = transformers.AutoModel.from_pretrained(options.published, dtype=getattr(torch, options.dtype)).eval()

    def embed(lines: list[str]) -> Any:
        order = np.argsort([-len(line) for line in lines], kind="stable")
        found = np.zeros((len(lines), model.config.hidden_size), np.float32)
        for start in range(0, len(lines), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer(
                [lines[i] for i in rows], padding=True, truncation=True, max_length=options.most, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                mean = (hidden * mask).sum(1) / mask.sum(1)
                found[rows] = torch.nn.functional.normalize(mean, dim=1).float().numpy()
        return found

    return f"torch {torch.__version__}, transformers {transformers.__version__}", embed


def sentence_transformers(options: argparse.Namespace) -> tuple[str, Callable[[list[str]], Any]]:
    """Its `encode`."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(
        str(options.published), device="cpu", model_kwargs={"dtype": options.dtype}
    )
    model.max_seq_length = options.most
    return f"sentence-transformers {sentence_transformers.__version__}", lambda lines: model.encode(
        lines, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
    )


SIDES = {"transformers": theirs, "sentence-transformers": sentence_transformers, "ours": ours}


def serve(options: argparse.Namespace) -> None:
    """A worker: any line comes in, and seconds go out; the first time, with some of the vectors."""
    way_back = answers()
    about, embed = SIDES[options.serve](options)
    lines = read(options)
    vectors = embed(lines)
    print(json.dumps([about, vectors[:: max(1, len(lines) // 50)].tolist()]), file=way_back)
    for _ in sys.stdin:
        began = time.perf_counter()
        embed(lines)
        print(json.dumps(time.perf_counter() - began), file=way_back)


def read(options: argparse.Namespace) -> list[str]:
    """The lines that are not empty."""
    return [line for line in options.text.read_text().split("\n") if line.strip()][: options.lines]


def main() -> None:
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model folder of ours")
    parser.add_argument("published", type=Path, help="the same model as a Hugging Face folder")
    parser.add_argument("text", type=Path, help="a file of lines")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--most", type=int, default=256, help="tokens of a line")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, action="append", help="repeatable; default: all")
    parser.add_argument("--ours-python", default=sys.executable, help="an interpreter with jax")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options)
    sides = options.side or list(SIDES)
    pythons = {side: options.ours_python if side == "ours" else options.torch_python for side in sides}
    workers = [Worker(side, pythons[side], __file__, "--serve", side, *sys.argv[1:]) for side in sides]
    first = np.array(workers[0].about[1])
    turns: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(options.rounds):
        for worker in workers if i % 2 else workers[::-1]:
            turns[worker.label].append(worker.ask("go"))
    count = len(read(options))
    print(f"{count} lines of '{options.text}', of {options.most} tokens at most; medians of {options.rounds}")
    base = statistics.median(turns[sides[0]])
    for worker in workers:
        seconds, vectors = statistics.median(turns[worker.label]), np.array(worker.about[1])
        cosine = (vectors * first).sum(1).min()
        print(
            f"{worker.label:22} {count / seconds:8,.0f} lines/s, ratio {base / seconds:.2f}, least cosine {cosine:.7f}"
            f"  {worker.about[0]}"
        )
        worker.close()
    return None


if __name__ == "__main__":
    main()
