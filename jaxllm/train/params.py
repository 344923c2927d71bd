"""The parameters of a model folder: those of a run, of an imported model, or of a base with what was tuned of it."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.common.paths import user_path
from jaxllm.common.trees import Tree, flatten
from jaxllm.config import RunConfig, UserError, differences
from jaxllm.models.adapters import VIRTUAL, frozen_table, trained_table
from jaxllm.models.table import parameter_table
from jaxllm.peft.merge import folded, folded_leaf
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import parameter_specs
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.run_folder import saved_config, saved_tokenizer
from jaxllm.validation import problems, refuse

Step = int | Literal["best"] | None
"""A checkpoint: of that step, the one with the lowest held-out loss, or the latest."""

FREE = {"dropout", "first_dropout", "max_positions", "router_loss", "init_std"}
"""Fields of a model that may be others than those of its base: they change no parameter's shape or meaning, unless
positions are learned."""


class Origin(NamedTuple):
    """Which parameters a run began with: `base.json` in its folder."""

    step: int
    """The checkpoint of the base."""
    fingerprint: str
    """Of its parameters (`fingerprint`); empty where they were never seen, as of an adapter that others have made."""


def load_run_params(
    run_folder: Path, step: Step = None, ema: bool = True, dtype: Any = jnp.float32
) -> tuple[RunConfig, Tree, Info]:
    """A run's configuration, its parameters on the first device, and where it stood.

    What was trained is float32, what was imported of the type that it was imported in. Of a run that has trained an
    adapter these are the base's, with the adapter in it.

    Args:
        run_folder: of the run.
        step: which checkpoint.
        ema: take the moving average of the parameters where the run keeps one.
        dtype: of kernels that have the updates of an adapter in them; narrower than float32 it saves memory where they
            are used in it.

    Raises:
        UserError: it is no run folder, its configuration does not hold together, or the checkpoint is not there or
            damaged; or the base is not what it was.
    """
    config, trained, info = load_trained(run_folder, step, ema)
    if not frozen_table(config):
        return config, trained, info
    return config, folded(config, trained, load_own_base(run_folder, config), dtype), info


def load_adapter(run_folder: Path, base: str) -> tuple[RunConfig, Tree]:
    """What a run has trained beside the parameters whose fingerprint is `base`, and its configuration.

    Raises:
        UserError: the run has no adapter, or one for other parameters.
    """
    config, trained, _ = load_trained(run_folder)
    if not frozen_table(config):
        raise UserError(f"the run in '{run_folder}' has trained all of its parameters, and is no adapter")
    origin = read_origin(run_folder)
    if origin is not None and origin.fingerprint not in ("", base):
        raise UserError(
            f"'{run_folder}' is an adapter for another base: the model in '{config.base}', as it was when the run began"
        )
    return config, trained


def load_own_base(run_folder: Path, config: RunConfig) -> Tree:
    """The parameters that the adapter of a run belongs to, in their own types, on the first device.

    Raises:
        UserError: they are not what they were, or of another shape than the run's model, or not there.
    """
    assert config.base is not None
    base_folder = user_path(config.base)
    origin = read_origin(run_folder)
    check_base(config, saved_config(base_folder))
    other = UserError(
        f"'{run_folder}' is an adapter for another base than what lies in '{base_folder}' now: put back the model that "
        "it was trained on"
    )
    with Checkpoints(base_folder) as checkpoints:
        if origin is not None and origin.step not in checkpoints.steps():
            raise other
    _, base, info = load_run_params(base_folder, None if origin is None else origin.step)
    if origin is not None and origin.fingerprint not in ("", fingerprint(base_folder, info.step, base)):
        raise other
    return base


def load_trained(run_folder: Path, step: Step = None, ema: bool = True) -> tuple[RunConfig, Tree, Info]:
    """The same of what the run has trained alone: of LoRA, the adapter. Args and Raises as for `load_run_params`."""
    config = saved_config(run_folder)
    refuse(problems(config))
    with Checkpoints(run_folder) as checkpoints:
        return config, *checkpoints.restore_params(_chosen(run_folder, checkpoints, step), ema)


def _chosen(run_folder: Path, checkpoints: Checkpoints, step: Step) -> int:
    steps = checkpoints.steps()
    if step is None and not steps:
        raise UserError(f"the run in '{run_folder}' has no checkpoint yet")
    if step == "best":
        step = checkpoints.best()
        if step is None:
            raise UserError(f"no checkpoint of the run in '{run_folder}' has a held-out loss; name one by its step")
    return steps[-1] if step is None else step


def load_base(
    config: RunConfig, mesh: Mesh, origin: Origin | None, keep: Callable[[str, jax.Array], Any]
) -> tuple[dict[str, Any], Origin]:
    """All parameters that a run begins with, by their paths; and which those are.

    Args:
        config: of the run, which has a base.
        mesh: of the run.
        origin: what the run began with, if it has begun.
        keep: makes of a path and its parameter, cut along `mesh`, what is kept of it; the next one is read after that.

    Raises:
        UserError: the base is no model folder, of another shape than the run's model, or not what it was.
    """
    assert config.base is not None
    folder = user_path(config.base)
    base_config = saved_config(folder)
    check_base(config, base_config, "; --base on the command line brings its model with it")
    other = UserError(f"base = '{config.base}': is not what this run began with; put that model back")
    cut = table_specs(mesh.shape, parameter_table(config.model))
    specs = flatten(parameter_specs(cut, config.mesh.zero_stage))
    places = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    with Checkpoints(folder) as checkpoints:
        if origin is not None and origin.step not in checkpoints.steps():
            raise other
        step = _chosen(folder, checkpoints, None if origin is None else origin.step)
        if frozen_table(base_config):
            everywhere = dict.fromkeys(trained_table(base_config), NamedSharding(mesh, P()))
            trained = checkpoints.restore_params(step, True, everywhere)[0]
            below, own = replace(base_config, mesh=config.mesh), read_origin(folder)
            kept = load_base(below, mesh, own, _keep_folded(below, trained, places, keep))[0]
            found = Origin(step, _hash_of_adapter(trained, own))
        else:
            sums, kept = {}, {}
            for path, x in checkpoints.each_param(step, True, places):
                sums[path] = int(_weighed(x))
                kept[path] = keep(path, x)
                del x  # before the next one is read
            found = Origin(step, _hash_of(sums))
    if origin is not None and origin.fingerprint not in ("", found.fingerprint):
        raise other
    return kept, found


def _keep_folded(
    config: RunConfig, trained: Tree, places: Mapping[str, NamedSharding], keep: Callable[[str, jax.Array], Any]
) -> Callable[[str, jax.Array], Any]:
    """Keeps a parameter of a base once it has what a run has trained in it."""

    def keep_folded(path: str, x: jax.Array) -> Any:
        fold = jax.sharding.auto_axes(functools.partial(folded_leaf, config, path), out_sharding=places[path])
        return keep(path, jax.jit(fold)(trained, x))

    return keep_folded


def with_base_tokenizer(config: RunConfig) -> RunConfig:
    """A run that has a base and no tokenizer of its own, with its base's.

    Raises:
        UserError: the base is no model folder, or its tokenizer is gone.
    """
    if config.base is None or config.tokenizer.path is not None:
        return config
    folder = user_path(config.base)
    begins = saved_config(folder).tokenizer.begins_prompts
    own = replace(config.tokenizer, path=str(saved_tokenizer(folder)), begins_prompts=begins)
    return replace(config, tokenizer=own)


def check_base(config: RunConfig, base: RunConfig, remedy: str = "") -> None:
    """
    Raises:
        UserError: the model of a run is not of the shape of its base; with what would do.
    """
    if base.tuning.method in VIRTUAL:
        raise UserError(f"base = '{config.base}': has virtual tokens or gates, which cannot be a part of a base")
    free = FREE - {"max_positions"} if base.model.positions == "learned" else FREE
    changed = differences(base.model, config.model)
    if wrong := [line for line in changed if line.split(":")[0].split(".")[0] not in free]:
        raise UserError(
            f"base = '{config.base}': its model is another one than that of the run: {', '.join(wrong)}{remedy}"
        )


def fingerprint(run_folder: Path, step: int, params: Tree, ema: bool = True) -> str:
    """A hash of the parameters of a model folder, the same for the same numbers, however they are cut.

    Of an adapter it is of what was trained and of its base's fingerprint, not of their sums, which another machine may
    round otherwise.

    Args:
        run_folder: where the parameters were loaded from.
        step: the checkpoint.
        params: of that step, all of them.
        ema: whether they are the moving average.
    """
    if not frozen_table(saved_config(run_folder)):
        return _hash_of(_sums(params))
    return _hash_of_adapter(load_trained(run_folder, step, ema)[1], read_origin(run_folder))


def _hash_of_adapter(trained: Tree, origin: Origin | None) -> str:
    return _hash_of(_sums(trained), "" if origin is None else origin.fingerprint)


def _sums(params: Tree) -> dict[str, int]:
    return {path: int(_weighed(x)) for path, x in flatten(params).items()}


def _hash_of(sums: Mapping[str, int], *base: str) -> str:
    parts = (dict(sorted(sums.items())), *base)
    return hashlib.blake2b("".join(map(json.dumps, parts)).encode(), digest_size=8).hexdigest()


@jax.jit
def _weighed(x: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of the bits of float32 numbers, each times an odd number of its own place."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    weights, stride = jnp.uint32(1), 1
    for axis in reversed(range(x.ndim)):
        places = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding)
        weights, stride = weights + jnp.uint32(2 * stride % 2**32) * places, stride * x.shape[axis]
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def read_origin(run_folder: Path) -> Origin | None:
    """What the run in a folder began with, if it has a base and has begun.

    Raises:
        UserError: the file that says it is damaged.
    """
    path = run_folder / "base.json"
    try:
        return Origin(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}; it names the checkpoint of the base") from None


def write_origin(run_folder: Path, origin: Origin) -> None:
    """Writes down what the run in a folder begins with."""
    (run_folder / "base.json").write_text(json.dumps(origin._asdict()) + "\n")
