"""How a run begins: with random parameters, or with those of a base and what an adapter begins as."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import PromptConfig, RunConfig, UserError
from jaxllm.data.loader import Loader
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.models.adapters import VIRTUAL, block_size, frozen_table, kept_as, trained_table
from jaxllm.peft.start import starts
from jaxllm.quantization.blocks import Quantized, quantized
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import optimizer_specs, parameter_specs
from jaxllm.train.params import Origin, load_base
from jaxllm.train.state import State, initial_state

COMMON = 5000
"""Of how many commonest tokens virtual tokens are drawn (2104.08691)."""


def prompt_tokens(prompt: PromptConfig, tokenizer: Tokenizer, counts_V: np.ndarray, seed: int) -> list[list[int]]:
    """The tokens that each virtual token begins as; empty where all begin as uniform numbers.

    Args:
        prompt: how many, and what they begin as.
        tokenizer: of the model.
        counts_V: how often each token is in the training text.
        seed: of the draw.

    Raises:
        UserError: a label without a token.
    """
    if prompt.start == "uniform":
        return []
    labels = [tokenizer.encode(text) for text in prompt.labels] if prompt.start == "labels" else []
    if [] in labels:
        text = prompt.labels[labels.index([])]
        raise UserError(f"tuning.prompt.labels has {text!r}, which makes no token; leave it out")
    special = tokenizer.special_ids()
    commonest = [int(i) for i in np.argsort(-counts_V, kind="stable") if counts_V[i] > 0 and int(i) not in special]
    drawn = np.random.default_rng(seed).choice(commonest[:COMMON], prompt.length)
    return [*labels, *([int(i)] for i in drawn)][: prompt.length]


class Beginning(NamedTuple):
    """What a run has before its first step."""

    state: State
    frozen: Tree
    origin: Origin | None
    """Which parameters it began with, if it has a base."""


def begin(config: RunConfig, mesh: Mesh, loader: Loader) -> Beginning:
    """The first state of a run, and what it does not train.

    Raises:
        UserError: as `load_base` and `prompt_tokens` do.
    """
    if config.base is None:
        return Beginning(initial_state(config, mesh), {}, None)
    base, origin = load_base(config, mesh, None, functools.partial(kept, config))
    tokens: list[list[int]] = []
    if config.tuning.method in VIRTUAL:
        tokens = prompt_tokens(config.tuning.prompt, loader.corpus.tokenizer, _counts(loader), config.seed)
    trained = trained_table(config)
    given = {path: x for path, x in base.items() if path in trained} | starts(config, base, tokens)
    cut = flatten(optimizer_specs(table_specs(mesh.shape, trained), config.mesh.zero_stage))
    given = {path: jax.device_put(x, NamedSharding(mesh, cut[path])) for path, x in given.items()}
    frozen = nest({path: x for path, x in base.items() if path not in trained})
    return Beginning(initial_state(config, mesh, given), frozen, origin)


def load_frozen(config: RunConfig, mesh: Mesh, origin: Origin | None) -> Tree:
    """What a run that goes on does not train. Raises as `load_base`."""
    if config.base is None or not frozen_table(config):
        return {}
    base, _ = load_base(config, mesh, origin, functools.partial(kept, config))
    return nest({path: base[path] for path in frozen_table(config)})


def kept(config: RunConfig, path: str, x: jax.Array) -> jax.Array | Quantized:
    """A parameter of the base in the form in which a run keeps it; one that is trained as it is."""
    x, leaf = x.astype(jnp.float32), frozen_table(config).get(path)
    dtype = "float32" if leaf is None else kept_as(path, leaf, config.tuning.base_dtype)
    if dtype not in ("int8", "nf4"):
        return x.astype(dtype)
    return jax.jit(quantized, static_argnums=(1, 2))(x, dtype, block_size(x.shape[-1]))


def abstract_frozen(config: RunConfig, mesh: Mesh) -> Tree:
    """Shapes, types and shardings of what a run does not train."""
    table = frozen_table(config)
    specs = flatten(parameter_specs(table_specs(mesh.shape, table), config.mesh.zero_stage))
    base = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=NamedSharding(mesh, specs[path]))
        for path, leaf in table.items()
    }
    with jax.set_mesh(mesh):
        shapes = nest({path: jax.eval_shape(functools.partial(kept, config, path), x) for path, x in base.items()})
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec)), shapes
    )


def _counts(loader: Loader) -> np.ndarray:
    """How often each token is in the training text."""
    size = loader.corpus.tokenizer.vocab_size
    texts = (documents.tokens[documents.span] for documents in loader.corpus.train)
    return sum((np.bincount(text, minlength=size) for text in texts), np.zeros(size))
