"""Measures the loader alone: packing efficiency and tokens a second by packing and row length.

    python tools/bench_loader.py [--batch-size 8] [--lengths 256 512 2048] [--seconds 2]

Uses the embedded corpus with a 4096-piece tokenizer, from the cache if it is there. One JSON line for each
setting.
"""

import argparse
import dataclasses
import json
import time

from jaxllm.config import DataConfig, TokenizerConfig
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader, loader_speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 2048])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()

    data = DataConfig()
    start = time.perf_counter()
    corpus = prepare_corpus(data, TokenizerConfig(), progress=True)
    prepared = time.perf_counter() - start
    print(json.dumps({**dataclasses.asdict(corpus.report), "prepare_seconds": round(prepared, 2)}))
    for packing in ("documents", "concatenate"):
        for length in options.lengths:
            setting = dataclasses.replace(data, packing=packing, sequence_length=length)
            loader = Loader(corpus, setting, options.batch_size, seed=0)
            result = {
                "packing": packing,
                "sequence_length": length,
                "batch_size": options.batch_size,
                "efficiency": round(loader.packing_efficiency, 5),
                "tokens_per_second": round(loader_speed(loader, options.seconds)),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
