"""Lowers and compiles the training step of a run for a machine that is not here: the step that `train` runs."""

import dataclasses
import re
import time
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from jaxllm.common.corrupted import batch_arrays
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig, UserError
from jaxllm.planning.text import Program, parse
from jaxllm.planning.topology import Target, Torus, devices, domains_of, torus_of
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import BATCH
from jaxllm.train.begin import abstract_frozen
from jaxllm.train.fit import check_attention
from jaxllm.train.state import State, abstract_state
from jaxllm.train.step import Batch, make_step


class Sizes(NamedTuple):
    """Bytes on one device, as the compiler counts them."""

    arguments: int
    """State and batch."""
    temporary: int
    """Gradients, activations and all else that lives within the step."""
    results: int
    """What comes out and does not take the place of an argument."""
    code: int
    """The program itself."""
    host: int
    """What is kept in the memory of the host."""
    peak: int
    """The most at once, the program included; the sum of all where the compiler does not tell."""


class Compiled(NamedTuple):
    """A training step that was compiled."""

    config: RunConfig
    """With the sizes of the mesh, and the compute type of the target's platform."""
    state: State
    """Shapes and shardings."""
    frozen: Tree
    """The same of what is not trained."""
    program: Program
    sizes: Sizes
    domains: list[int]
    """The slice or host of each device, in the order of the program; empty where there is one."""
    torus: Torus | None
    """Where the devices lie in a slice of TPUs."""
    lowering_seconds: float
    compile_seconds: float


class Allocation(NamedTuple):
    """One of the largest that the compiler names when it refuses a program."""

    bytes: float
    shape: str
    source: str


class TooLarge(NamedTuple):
    """A training step that the compiler refused for want of memory."""

    config: RunConfig
    state: State
    needed: float | None
    """Bytes, where the compiler tells; of the temporaries alone where it gives up early."""
    available: float | None
    largest: list[Allocation]
    message: str
    """The first line of what the compiler said."""
    frozen: Tree = None
    """Shapes and shardings of what is not trained."""


def for_platform(config: RunConfig, platform: str) -> RunConfig:
    """The configuration as `train` resolves it on a platform: `auto` is bfloat16 but on CPU."""
    if config.train.compute_dtype != "auto":
        return config
    chosen = "float32" if platform == "cpu" else "bfloat16"
    return dataclasses.replace(config, train=dataclasses.replace(config.train, compute_dtype=chosen))  # type: ignore[arg-type]


def abstract_batch(config: RunConfig, mesh: Mesh) -> Batch:
    """Shapes, types and sharding of what the loader gives for one step (`data/loader.py`)."""
    rows, sharding = config.train.batch_size, NamedSharding(mesh, BATCH)
    arrays = batch_arrays(config.objective, config.data.sequence_length).items()
    return {name: jax.ShapeDtypeStruct((rows, own), dtype, sharding=sharding) for name, (own, dtype) in arrays}  # type: ignore[misc]


def compile_step(config: RunConfig, asked: Target) -> Compiled | TooLarge:
    """The training step of `config`, compiled for the machine `asked`. Takes seconds to minutes, and no accelerator.

    Raises:
        UserError: the mesh cannot be laid over the machine, attention cannot be computed there as asked, or the TPU
            compiler fails.
    """
    config = for_platform(config, asked.chip.platform)
    mesh = make_mesh(config.mesh, devices(asked))
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh.shape))
    check_attention(config, mesh)
    state = abstract_state(config, mesh)
    begin = time.monotonic()
    frozen = abstract_frozen(config, mesh)
    lowered = make_step(config, mesh).lower(state, abstract_batch(config, mesh), frozen)  # type: ignore[attr-defined]
    middle = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return too_large(config, state, str(error), frozen)
        if asked.chip.platform != "tpu":
            raise
        raise UserError(f"{_failed(asked)}: {str(error).partition(chr(10))[0]}") from error
    end = time.monotonic()
    laid = list(mesh.devices.flat)
    domains, torus = domains_of(laid, asked), torus_of(laid, asked)
    sizes = _sizes(compiled.memory_analysis(), asked.chip.platform)
    return Compiled(
        config, state, frozen, parse(compiled.as_text()), sizes, domains, torus, middle - begin, end - middle
    )


def _failed(asked: Target) -> str:
    """libtpu is chosen apart from jax here, and some pairs read each other's programs wrongly."""
    versions = f"jax {version('jax')} and libtpu {version('libtpu')}"
    return f"--topology {asked.name}: the compiler failed with {versions}, which may not go together"


def _sizes(stats: Any, platform: str) -> Sizes:
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    host_results = stats.host_output_size_in_bytes - stats.host_alias_size_in_bytes
    host = stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes + host_results
    code = stats.generated_code_size_in_bytes
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + results
    if platform == "tpu" and stats.peak_memory_in_bytes:  # elsewhere it leaves the temporaries out
        peak = min(peak, stats.peak_memory_in_bytes)  # which counts what lies on the host too
    return Sizes(stats.argument_size_in_bytes, stats.temp_size_in_bytes, results, code, host, peak + code)


USED = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT]?)\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT]?)")
"""What is needed and what there is, in the two ways in which the compiler tells of both."""

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def too_large(config: RunConfig, state: State, error: str, frozen: Tree = None) -> TooLarge:
    """What the compiler says of a program that it refuses: what it needs, what there is, the largest allocations."""
    used = USED.search(error)
    needed = float(used[1]) * UNITS[used[2]] if used else None
    available = float(used[3]) * UNITS[used[4]] if used else None
    largest = [
        Allocation(float(size) * UNITS[unit], shape, source)
        for size, unit, source, shape in re.findall(
            r'Size: ([\d.]+)([KMGT]?)B?\s+(?:Operator: op_name="([^"]*)"[^\n]*\s+)?Shape: ([^\n]*)', error
        )
    ]
    message = next((line for line in error.splitlines() if "RESOURCE_EXHAUSTED" in line), error)
    return TooLarge(config, state, needed, available, largest, message.strip(), frozen)
