"""What tests read out of a loader and its batches."""

import numpy as np

from jaxllm.data.loader import Batch, Loader

SENTINELS = tuple(f"<extra_id_{i}>" for i in range(40))


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def joined(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def segments(batch: Batch) -> list[dict[str, list]]:
    """The arrays of each segment of each row; those of the encoder are from the one with the same number."""
    found = []
    for row in range(len(batch["tokens"])):
        count = batch["segments"][row].max()
        assert count == batch.get("encoder_segments", batch["segments"])[row].max()
        for s in range(1, count + 1):
            sides = {"": batch["segments"][row] == s}
            if "encoder_segments" in batch:
                sides["encoder_"] = batch["encoder_segments"][row] == s
            which = {name: sides["encoder_" if name.startswith("encoder_") else ""] for name in batch}
            found.append({name: x[row][which[name]].tolist() for name, x in batch.items()})
    return found


def epoch(loader: Loader) -> Batch:
    """All training rows once, of a loader with batches of one row."""
    return joined([loader.batch(k) for k in range(len(loader.plans[0]))])
