"""Run folders that hold an adapter, read and made."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from jaxllm.common.paths import whole_folder
from jaxllm.config import MeshConfig, RunConfig, UserError
from jaxllm.train.run_folder import create, saved_config

if TYPE_CHECKING:
    import numpy as np

    from jaxllm.train.params import Origin


class Adapter(NamedTuple):
    """What a run has trained beside its base."""

    folder: Path
    config: RunConfig
    leaves: Mapping[str, "np.ndarray"]
    """By their paths, on the host."""
    origin: "Origin | None"
    step: int


def load_adapter(folder: Path, step: int | Literal["best"] | None = None, ema: bool = True) -> Adapter:
    """The adapter in a run folder.

    Raises:
        UserError: it is no run folder, has no such checkpoint, or the run has trained no adapter.
    """
    check_is_adapter(folder, saved_config(folder))

    import numpy as np

    from jaxllm.common.trees import flatten
    from jaxllm.train.params import load_trained, read_origin

    config, trained, info = load_trained(folder, step, ema)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(trained).items()}
    return Adapter(folder, config, leaves, read_origin(folder), info.step)


def check_is_adapter(folder: Path, config: RunConfig) -> None:
    """
    Raises:
        UserError: the run has trained no adapter.
    """
    if config.tuning.method == "full":
        raise UserError(
            f"'{folder}' has no adapter: it is a model, or a run that has trained a model's own parameters "
            "(tuning.method = 'full'); `jaxllm export` writes it"
        )


def save_adapter(
    out: Path, config: RunConfig, leaves: Mapping[str, "np.ndarray"], origin: "Origin", tokenizer: Path
) -> None:
    """Makes a run folder that stands at step 0 with an adapter, and could be trained further; whole or not at all.

    Args:
        out: must not be there, or be empty.
        config: of the run, but for its place.
        leaves: of the adapter by their paths, in float32.
        origin: of its base.
        tokenizer: of its base, with the chat template beside it.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    import jax
    from jax.sharding import NamedSharding

    from jaxllm.common.trees import flatten
    from jaxllm.data.chat_template import load_chat_template
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.models.adapters import trained_table
    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.rules import table_specs
    from jaxllm.train.checkpoint import Checkpoints, Info
    from jaxllm.train.params import write_origin
    from jaxllm.train.state import initial_state

    config = replace(config, name=out.absolute().name, output=None)
    one = replace(config, mesh=MeshConfig(data=1))
    mesh, table = make_mesh(one.mesh, jax.devices()[:1]), trained_table(one)
    assert leaves.keys() == table.keys()
    cut = flatten(table_specs(mesh.shape, table))
    given = {path: jax.device_put(leaf, NamedSharding(mesh, cut[path])) for path, leaf in leaves.items()}
    own = load_tokenizer(tokenizer)
    with whole_folder(out) as writing:
        create(writing, config, tokenizer, load_chat_template(tokenizer.parent, own))
        write_origin(writing, origin)
        with Checkpoints(writing) as checkpoints:
            info = Info(step=0, tokens=0, corpus="", tokenizer=own.fingerprint)
            checkpoints.save(initial_state(one, mesh, given), info)
            checkpoints.wait()
