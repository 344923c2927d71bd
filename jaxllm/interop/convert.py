"""Between published tensors and our parameters, a tensor at a time, each straight into its shard of the mesh."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree, nest
from jaxllm.config import TransformerConfig, UserError, read_dict, to_dict
from jaxllm.interop.families import FAMILIES, Family, family_of
from jaxllm.interop.published import Published, Tensor
from jaxllm.interop.rules import Named, contiguous, join, misfits, named, split
from jaxllm.interop.settings import Settings
from jaxllm.models.table import parameter_table
from jaxllm.sharding.rules import spec
from jaxllm.validation import model_problems

MOST_NAMES = 20
"""Of tensors that are listed in a message."""

HEADS = ("lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight", "embed_out.weight")
"""Names of heads, which are stored though they are the embedding too."""

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Conversion:
    """A published model that fits: its configuration, and which of its tensors goes where."""

    config: TransformerConfig
    family: Family
    tensors: dict[str, Named]
    """By the name in the file."""
    dtype: str
    """The widest type of the tensors."""
    left_out: tuple[str, ...] = ()
    """Tensors in the file that no model here has."""

    @property
    def parameters(self) -> int:
        """Of all tensors together."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())


def plan_import(published: Published) -> Conversion:
    """Holds a published model against the key map of its family.

    Raises:
        UserError: a family or setting that is not known; tensors that are missing, too many or of other shapes, each by
            its name.
    """
    where = published.path / "config.json" if published.path.is_dir() else published.path
    settings = Settings(published.config, str(where), frozenset(published.tensors))
    family = family_of(settings)
    config = _checked(family.read(settings), str(where), len(published.tensors))
    wanted = {tensor.name: tensor for tensor in named(family.rules(config), parameter_table(config))}
    there = {_present_name(family, name, wanted): name for name in published.tensors}
    missing = sorted(set(wanted) - set(there))
    others = sorted(n for n in set(there) - set(wanted) if not _is_named(n, family.ignored))
    left_out = tuple(name for name in others if _is_named(name, family.left_out))
    extra = [name for name in others if name not in left_out]
    found = {name: published.tensors[there[name]].shape for name in wanted if name in there}
    misshaped = [
        f"{name} is {list(shape)} and should be {list(wanted[name].shape)}"
        for name, shape in found.items()
        if shape != wanted[name].shape
    ]
    mistakes = [
        f"{len(names)} {what}: {', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''}"
        for what, names in (("missing", missing), ("too many", extra), ("of another shape", misshaped))
        if names
    ]
    if mistakes:
        raise UserError(
            f"the tensors of '{published.path}' are not those of its config.json ({family.model_type}):\n  "
            + "\n  ".join(mistakes)
        )
    kinds = {published.tensors[there[name]].dtype for name in wanted}
    dtype = next(iter(kinds)) if len(kinds) == 1 else "float32"
    return Conversion(config, family, {there[name]: tensor for name, tensor in wanted.items()}, dtype, left_out)


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _checked(config: TransformerConfig, where: str, count: int) -> TransformerConfig:
    """Types as they are declared, and values that make a model.

    More layers or experts than the `count` of tensors would fill the memory with names.
    """
    config, wrong = read_dict(TransformerConfig, to_dict(config))
    mistakes = list(wrong.values()) or model_problems(config)
    mistakes += [
        f"model.{field} = {size}: there are but {count} tensors"
        for field in ("layers", "encoder_layers", "experts")
        if (size := getattr(config, field) or 0) > count
    ]
    if mistakes:
        raise UserError(f"{where} gives a model that will not do: " + "\n  ".join(mistakes))
    return config


def _present_name(family: Family, name: str, wanted: Mapping[str, Named]) -> str:
    """What a tensor is called today, with the prefix that files of a model without a head leave out."""
    for old, new in family.renamed:
        name = name.replace(old, new)
    prefixed = family.prefix + name
    return prefixed if name not in wanted and prefixed in wanted else name


def load(
    published: Published,
    conversion: Conversion,
    mesh: Mesh,
    dtype: str,
    tell: Callable[[int], None] = lambda done: None,
) -> Tree:
    """The parameters, cut along `mesh` by the rules of `sharding/`.

    Beside them one tensor is in memory, and what is cut of it.

    Args:
        published: where the tensors are read.
        conversion: of `plan_import`.
        mesh: of explicit axes.
        dtype: of the parameters.
        tell: is called with the numbers of parameters that are done.

    Raises:
        UserError: the head has a tensor of its own, which `config.json` denies.
    """
    _check_tied(published, conversion)
    table = parameter_table(conversion.config)
    leaves: dict[str, jax.Array] = {}
    done = 0
    with jax.set_mesh(mesh):
        for name, tensor in conversion.tensors.items():
            parts = split(tensor.rule, table, published.read(name))
            for path, part in zip(tensor.rule.paths, parts, strict=True):
                leaf, place = table[path], tensor.place
                cut = spec(mesh.shape, leaf)
                if place and path not in leaves:
                    leaves[path] = _zeros(leaf.shape, dtype, NamedSharding(mesh, cut))()
                placed = _placed(part, dtype, NamedSharding(mesh, P(*cut[len(place) :])))
                leaves[path] = _set(leaves[path], placed, place) if place else placed
            done += int(np.prod(tensor.shape))
            tell(done)
    return nest({path: leaves[path] for path in table})


def _check_tied(published: Published, conversion: Conversion) -> None:
    """A head that is the embedding is often stored once more; then it must be the same."""
    stored = [name for name in HEADS if name in published.tensors and name not in conversion.tensors]
    if not stored or not conversion.config.tied_embeddings:
        return
    [embedding] = (n for n, tensor in conversion.tensors.items() if tensor.rule.ours == "embedding/tokens")
    for head in stored:
        if not np.array_equal(published.read(head), published.read(embedding)):
            raise UserError(
                f"'{published.path}': '{head}' differs from '{embedding}', and config.json says that they are one: set "
                "tie_word_embeddings to false there, or leave the tensor out"
            )


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: str, sharding: NamedSharding) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _placed(part: np.ndarray, dtype: str, sharding: NamedSharding) -> jax.Array:
    """`part` on the devices, each of which is given its own piece in its final type and in one run of memory."""
    return jax.make_array_from_callback(
        part.shape, sharding, lambda index: contiguous(part[index].astype(dtype, copy=False))
    )


def _set(leaf: jax.Array, part: jax.Array, place: tuple[int, ...]) -> jax.Array:
    return _setter(leaf.sharding)(leaf, part, tuple(jnp.int32(i) for i in place))


@functools.cache
def _setter(sharding: Any) -> Callable[..., jax.Array]:
    """Puts a part into its place, in the memory of the whole."""

    def put(leaf: jax.Array, part: jax.Array, place: tuple[Any, ...]) -> jax.Array:
        start: tuple[Any, ...] = (*place, *(np.int32(0) for _ in part.shape))
        return jax.lax.dynamic_update_slice(leaf, part[(None,) * len(place)], start)

    # Of a cut axis of experts one device holds the place: which one, the partitioner finds.
    return jax.jit(jax.sharding.auto_axes(put, out_sharding=sharding), donate_argnums=0)


def choose_family(config: TransformerConfig, wanted: str | None) -> Family:
    """The family that can express a configuration: the one that is asked for, or the first.

    Raises:
        UserError: none can, or not that one; with the fields in the way.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise UserError(f"--family {wanted}: is not known; there are {', '.join(FAMILIES)}")
    tried: list[tuple[list[str], Family]] = []
    for family in FAMILIES.values() if wanted is None else [FAMILIES[wanted]]:
        lost = _lost(config, family)
        if not lost:
            return family
        tried.append((lost, family))
    lost, nearest = min(tried, key=lambda pair: len(pair[0]))
    who = "no family can express this model; the nearest, {}," if wanted is None else "{} cannot express this model: it"
    raise UserError(f"{who.format(nearest.model_type)} has no way to say {', '.join(lost)}")


def named_tensors(config: TransformerConfig, family: Family) -> frozenset[str]:
    """What the tensors of a model are called."""
    return frozenset(tensor.name for tensor in named(family.rules(config), parameter_table(config)))


WITHOUT_EFFECT = {"init_std", "dropout", "router_loss", "max_positions"}
"""Fields that change nothing that a trained model computes."""


def _lost(config: TransformerConfig, family: Family) -> list[str]:
    """Fields of `config` that do not survive a family's `config.json`, with their values."""
    if config.architecture == "encoder_decoder" and config.encoder_layers is None:
        config = replace(config, encoder_layers=config.layers)
    table = parameter_table(config)
    if strange := misfits(family.rules(config), table):
        return sorted(strange)
    try:
        written = family.write(config)
        values = {**written, "model_type": family.model_type}
        back = family.read(Settings(values, "", named_tensors(config, family)))
    except (UserError, KeyError, StopIteration) as error:
        return [str(error)]
    before, after = to_dict(config), to_dict(back)
    kept = {name for name in before if before[name] == after[name]} | WITHOUT_EFFECT
    return [f"{name} = {value!r}" for name, value in before.items() if name not in kept]


def is_bare(config: TransformerConfig) -> bool:
    """Whether a model has no head, whose files leave out the family's prefix."""
    return config.architecture == "encoder" and not (config.head_transform or config.labels)


def exported(
    config: TransformerConfig, family: Family, arrays: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Tensor, Callable[[], np.ndarray]]]:
    """Each tensor of theirs with how it is made of our parameters, by their paths, on this host."""
    table = parameter_table(config)
    bare = is_bare(config)

    def make(tensor: Named) -> np.ndarray:
        leaves = [np.asarray(arrays[path][tensor.place]) for path in tensor.rule.paths]
        return join(tensor.rule, table, leaves).astype(dtype, copy=False)

    for tensor in named(family.rules(config), table):
        name = tensor.name.removeprefix(family.prefix) if bare else tensor.name
        yield name, Tensor(tensor.shape, dtype, STORED[dtype]), functools.partial(make, tensor)
