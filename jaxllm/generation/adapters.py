"""Several adapters on one base, of which each row of a batch has its own.

All are stacked, with ranks and virtual tokens padded to the most that one has: a row without an adapter has factors of
0. What a batch needs is looked up once, before its prompts are read.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import RunConfig, TransformerConfig, UserError
from jaxllm.models.adapters import frozen_table, linear_modules, updates, virtual_tokens
from jaxllm.models.transformer import per_layer
from jaxllm.peft.merge import joined, magnitudes_of, scaled_updates


class Adapters:
    """What runs have trained on one base, by names."""

    def __init__(self, model: TransformerConfig, base: Tree, given: Mapping[str, tuple[RunConfig, Tree]]):
        """
        Args:
            model: of the base.
            base: its parameters, of which DoRA reads the kernels.
            given: the configuration of each run, and what it has trained.

        Raises:
            UserError: one has trained parameters of the base itself, or was trained on a model of another shape.
        """
        self.virtual: dict[str | None, range] = {None: range(0)}
        """The virtual tokens of each: which, counted from the first after the vocabulary."""
        lengths = {name: virtual_tokens(config.tuning) for name, (config, _) in given.items()}
        embedded = max((n for name, n in lengths.items() if given[name][0].tuning.method == "prompt"), default=0)
        self._places: dict[str | None, int] = {None: 0}
        trees: list[dict[str, jax.Array]] = [{}]
        for name, (config, trained) in given.items():
            _check(name, config, model)
            first = embedded if config.tuning.method == "prefix" else 0
            self._places[name], self.virtual[name] = len(trees), range(first, first + lengths[name])
            trees.append(_flat(config, trained, flatten(base)))
        self._leaves = {path: _stacked(path, trees) for path in sorted({path for tree in trees for path in tree})}

    def of_rows(self, names: Sequence[str | None]) -> Tree:
        """The leaves of each row's adapter: `[B, ...]`, those of layers in a tuple of one tree for each.

        Raises:
            UserError: there is no adapter of that name.
        """
        for name in names:
            if name not in self._places:
                there = ", ".join(str(other) for other in self._places if other is not None)
                raise UserError(f"there is no adapter '{name}'; there are {there or 'none'}")
        index_B = np.array([self._places[name] for name in names])
        rows = {path: x[index_B] for path, x in self._leaves.items()}
        layers = {path: jnp.moveaxis(x, 0, 1) for path, x in rows.items() if path.startswith("layers/")}
        tree = nest({path: x for path, x in rows.items() if path not in layers})
        if layers:
            tree["layers"] = per_layer(nest(layers)["layers"])
        return tree

    @staticmethod
    def beside(params: Tree, leaves: Tree) -> Tree:
        """Parameters whose layers are a tuple, with the leaves of `of_rows`."""
        rest = {name: node for name, node in leaves.items() if name != "layers"}
        both = joined(params, rest)
        if "layers" in leaves:
            both["layers"] = tuple(joined(*pair) for pair in zip(params["layers"], leaves["layers"], strict=True))
        return both


def _check(name: str, config: RunConfig, model: TransformerConfig) -> None:
    if model.architecture != "decoder":
        raise UserError(
            f"'{name}': adapters beside one another are of decoders, and this is an {model.architecture}; `jaxllm "
            "adapter merge` makes a model of each"
        )
    if config.tuning.method == "full" or config.tuning.also:
        raise UserError(f"'{name}' has trained parameters of its base, and is no adapter: it is a model of its own")
    ours, theirs = linear_modules(model), linear_modules(config.model)
    for module, leaf in theirs.items():
        if module not in ours or ours[module].shape != leaf.shape:
            there = list(ours[module].shape) if module in ours else "not there"
            raise UserError(
                f"'{name}' is an adapter for another base: its {module} is {list(leaf.shape)}, and here it is {there}"
            )
    assert frozen_table(config)


def _flat(config: RunConfig, trained: Tree, base: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The leaves of one adapter, with what DoRA's norms come to."""
    flat = flatten(scaled_updates(config, trained))
    if (gated := flat.get("layers/attention/gated_key")) is not None:
        flat["layers/attention/gated_there"] = jnp.ones(gated.shape[:2])
    for update in updates(config.model, config.tuning):
        if (wanted := flat.pop(f"{update.module}/lora_magnitude", None)) is not None:
            leaves = {name: flat[f"{update.module}/{name}"] for name in ("lora_a", "lora_b", "lora_scale")}
            flat[f"{update.module}/lora_gain"] = wanted / magnitudes_of(update, base[f"{update.module}/kernel"], leaves)
    return flat


def _stacked(path: str, trees: Sequence[Mapping[str, jax.Array]]) -> jax.Array:
    """One leaf of all adapters, each padded to the longest of its axes: by 0, or 1 where it is a factor."""
    fill = 1.0 if path.endswith("lora_gain") else 0.0
    there = [tree[path] for tree in trees if path in tree]
    shape = tuple(max(sizes) for sizes in zip(*(x.shape for x in there), strict=True))

    def padded(x: jax.Array | None) -> jax.Array:
        if x is None:
            return jnp.full(shape, fill, jnp.float32)
        return jnp.pad(x, [(0, most - size) for most, size in zip(shape, x.shape, strict=True)], constant_values=fill)

    return jnp.stack([padded(tree.get(path)) for tree in trees])
