"""What is known of a text by how frequent its tokens are: the loss below which a model has learned from context."""

from itertools import islice

import numpy as np

from jaxllm.data.loader import Loader

MOST = 2_000_000
"""Places of rows that are read, of each split."""


def unigram_loss(loader: Loader) -> float | None:
    """Nats a token of the held-out targets, by their frequencies (and one more) among those of training rows.

    None where nothing is held out.
    """
    most = max(1, MOST // (loader.sequence_length * loader.batch_size))
    counts = np.ones(loader.corpus.tokenizer.vocab_size)
    for k in range(min(most, max(1, sum(map(len, loader.plans)) // loader.batch_size))):
        batch = loader.batch(k)
        counts += np.bincount(batch["targets"].ravel(), batch["weights"].ravel(), minlength=len(counts))
    nats = np.log(counts.sum()) - np.log(counts)
    losses, weights = 0.0, 0.0
    for batch in islice(loader.validation_batches(loader.batch_size), most):
        losses += float((nats[batch["targets"]] * batch["weights"]).sum())
        weights += float(batch["weights"].sum())
    return losses / weights if weights else None
