"""Measures the loader alone: packing efficiency and tokens a second by packing and row length.

    python tools/bench_loader.py [--batch-size 8] [--lengths 256 512 2048] [--seconds 2] [--objectives causal masked]

Uses the embedded corpus with a 4096-piece tokenizer, from the cache if it is there. One JSON line for each
setting. Tokens are counted in the rows of the encoder, where there is one.
"""

import argparse
import dataclasses
import itertools
import json
import time

from jaxllm.config import DataConfig, ObjectiveConfig, TokenizerConfig
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader, loader_speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 2048])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--objectives", nargs="+", default=["causal"])
    options = parser.parse_args()

    data = DataConfig()
    start = time.perf_counter()
    hidden = () if options.objectives == ["causal"] else ("<mask>", *(f"<extra_id_{i}>" for i in range(256)))
    corpus = prepare_corpus(data, TokenizerConfig(extra_tokens=hidden), progress=True)
    prepared = time.perf_counter() - start
    print(json.dumps({**dataclasses.asdict(corpus.report), "prepare_seconds": round(prepared, 2)}))
    for kind, packing, length in itertools.product(options.objectives, ("documents", "concatenate"), options.lengths):
        setting = dataclasses.replace(data, packing=packing, sequence_length=length)
        loader = Loader(corpus, setting, options.batch_size, seed=0, objective=ObjectiveConfig(kind=kind))
        result = {
            "objective": kind,
            "packing": packing,
            "sequence_length": length,
            "batch_size": options.batch_size,
            "efficiency": round(loader.packing_efficiency, 5),
            "tokens_per_second": round(loader_speed(loader, options.seconds)),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
