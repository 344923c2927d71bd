"""Parameters of small models."""

import functools

import jax.numpy as jnp
import numpy as np

from jaxllm.common.trees import Tree, nest
from jaxllm.config import TransformerConfig
from jaxllm.models.table import parameter_table


@functools.cache
def parameters(config: TransformerConfig) -> Tree:
    """All leaves random, so that a norm's scale or a bias that is left out is seen."""
    random = np.random.default_rng(0)
    draws = {p: x.start + (x.std or 0.1) * random.normal(size=x.shape) for p, x in parameter_table(config).items()}
    return nest({path: jnp.asarray(x, jnp.float32) for path, x in draws.items()})
