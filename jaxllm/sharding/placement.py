"""Batches onto the devices of a mesh."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllm.layers.ring import zigzag
from jaxllm.sharding.rules import BATCH


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Arrays `[B, T]` cut by `BATCH`, their rows laid `zigzag` where the mesh cuts them.

    The order is that of `ring_attention`. Nothing else depends on the order of a row: positions travel with the tokens,
    and losses are sums.
    """
    parts = mesh.shape["sequence"]
    if parts > 1:
        batch = {name: x[:, zigzag(x.shape[1], parts)] for name, x in batch.items()}
    return jax.device_put(dict(batch), NamedSharding(mesh, BATCH))
