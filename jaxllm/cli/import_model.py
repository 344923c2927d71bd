"""`jaxllm import`: a published model as a model folder of ours."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jaxllm.cli.model_folders import SOURCE, save_params
from jaxllm.cli.progress import Progress
from jaxllm.common.paths import user_path, whole_folder
from jaxllm.config import (
    OBJECTIVES_OF,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    RunConfig,
    TokenizerConfig,
    TransformerConfig,
    UserError,
)
from jaxllm.train.run_folder import TOKENIZERS

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.common.trees import Tree
    from jaxllm.interop.convert import Conversion
    from jaxllm.interop.published import Published

ONE = MeshConfig(data=1)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Import a model that others have published: a Hugging Face folder, or a GGUF file."""

    source: tyro.conf.Positional[str]
    """The folder, with its config.json and safetensors, or the file."""
    out: tyro.conf.Positional[str]
    """The model folder that is made; `jaxllm chat`, `generate`, `embed` and `export` take it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the parameters that are kept; auto is that of the source, and float32 for quantised ones."""
    verify: bool = False
    """Compare logits with those of transformers, which must be installed: pip install 'jaxllm[bench]'."""
    mesh: MeshConfig = field(default_factory=lambda: ONE)
    """Where the parameters lie while they are converted."""


def run(argv: list[str]) -> int:
    """Makes the model folder, whole or not at all, and prints what was found in it.

    Returns:
        0; or 1 where the logits are not those of transformers.

    Raises:
        UserError: a source, an option or a place that will not do.
    """
    command = tyro.cli(Command, args=argv, prog="jaxllm import")
    source, out = user_path(command.source), user_path(command.out)

    from jaxllm.interop.convert import load, plan_import
    from jaxllm.interop.open import open_published
    from jaxllm.interop.verify import verify
    from jaxllm.train.run_folder import save_config

    began, is_sound = time.perf_counter(), True
    published = open_published(source)
    conversion = plan_import(published)
    dtype = conversion.dtype if command.dtype == "auto" else command.dtype
    with whole_folder(out) as writing:
        tokenizer = _copy_files(published, writing)
        config = _run_config(out, conversion.config, writing / tokenizer, command.mesh)
        mesh = _mesh(config)
        params = load(published, conversion, mesh, dtype, Progress("importing", "parameters", conversion.parameters))
        loaded = time.perf_counter()
        if command.verify:
            print(verified := verify(published.path, conversion.config, params))
            is_sound = verified.is_sound(is_rounded=dtype != conversion.dtype)
        save_config(writing, config)
        save_params(writing, params, writing / tokenizer)
    _tell(conversion, params, dtype, out, loaded - began, time.perf_counter() - began)
    return 0 if is_sound else 1


def _copy_files(published: "Published", folder: Path) -> str:
    """Keeps what came with the weights as it was, and returns the name of the tokenizer."""
    for name, content in published.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / SOURCE).write_text(json.dumps(dict(published.config), indent=2) + "\n")
    found = [name for name in TOKENIZERS if name in published.files]
    if not found:
        raise UserError(
            f"'{published.path}' has no tokenizer: neither {', '.join(TOKENIZERS)}; put the one that its publishers "
            "name beside the weights"
        )
    return found[0]


def _run_config(out: Path, model: TransformerConfig, tokenizer: Path, mesh: MeshConfig) -> RunConfig:
    """A run that could train this model, by the first objective of its architecture."""
    from jaxllm.data.tokenizer import load_tokenizer

    kind = OBJECTIVES_OF[model.architecture][0]
    length = min(DataConfig().sequence_length, model.max_positions)
    return RunConfig(
        name=out.absolute().name,
        model=model,
        data=DataConfig(sequence_length=length),
        objective=ObjectiveConfig(kind=kind),  # type: ignore[arg-type]
        tokenizer=TokenizerConfig(path=str(out / tokenizer.name), begins_prompts=load_tokenizer(tokenizer).begins),
        mesh=mesh,
    )


def _mesh(config: RunConfig) -> "Mesh":
    """
    Raises:
        UserError: there are not so many devices, or the model cannot be cut so.
    """
    import jax

    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.preflight import mesh_sizes, parameter_mistakes
    from jaxllm.validation import refuse

    devices = jax.devices()
    wanted = math.prod(mesh_sizes(config, len(devices)).values())
    if wanted > len(devices):
        raise UserError(f"--mesh: asks for {wanted} devices, and there are {len(devices)}")
    refuse(list(parameter_mistakes(config, wanted)))
    return make_mesh(config.mesh, devices[:wanted])


def _tell(conversion: "Conversion", params: "Tree", dtype: str, out: Path, loading: float, whole: float) -> None:
    """The self-check: what lies in the folder is what the files said."""
    import jax

    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert counted == conversion.parameters, f"{counted} parameters of {conversion.parameters}"
    if conversion.left_out:
        print(f"left out, since no model here has such a head: {', '.join(conversion.left_out)}")
    print(
        f"imported {conversion.family.model_type} with {counted:,} parameters from {len(conversion.tensors):,} tensors "
        f"as {dtype}, {size / 2**20:,.0f} MiB, to '{out}': read in {loading:.1f} s, {whole:.1f} s in all"
    )
