"""What is compiled is what `train` runs on the target."""

import dataclasses
import types

import jax
import pytest

from jaxllm.config import SourceConfig, TokenizerConfig, UserError
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.loader import Loader
from jaxllm.planning import compilation
from jaxllm.planning.compilation import TooLarge, abstract_batch, compile_step, for_platform, too_large
from jaxllm.planning.topology import target
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.state import abstract_state

EARLY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (20.01G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee https://openxla.org/xla/errors"
)
LATE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.36G of 15.75G hbm. Exceeded hbm capacity by 9.61G.

Total hbm usage >= 25.61G:
    reserved        258.00M

Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(step)/jvp(Transformer)/while/body/closed_call/mlp/dot_general" source_file="x.py"
     Shape: bf16[32,8,4096,4096]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 8.00G
     XLA label: fusion.1 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 500.00M
     Shape: f32[4096,32000]{1,0:T(8,128)}
     Allocation type: HLO temp
"""  # noqa: E501


@pytest.mark.parametrize(
    ("asked", "platform", "found"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "tpu", "bfloat16"),
        ("auto", "gpu", "bfloat16"),
        ("float32", "tpu", "float32"),
    ],
)
def test_the_compute_type_is_that_of_the_target(config, asked, platform, found):
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, compute_dtype=asked))
    assert for_platform(run, platform).train.compute_dtype == found


def test_the_batch_is_what_the_loader_gives(config, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n".join(f"value {i} of name {i * i} = {i % 7}" for i in range(600)))
    data = dataclasses.replace(
        config.data, sources=(SourceConfig(kind="text", path=str(text)),), validation_fraction=0.0
    )
    corpus = prepare_corpus(data, TokenizerConfig(vocab_size=300))
    given = Loader(corpus, data, config.train.batch_size, seed=0).batch(0)
    planned = abstract_batch(config, make_mesh(config.mesh))
    assert {n: (x.shape, x.dtype) for n, x in planned.items()} == {n: (x.shape, x.dtype) for n, x in given.items()}


def test_the_mesh_is_told_with_its_sizes(compiled):
    assert (compiled.config.mesh.data, compiled.config.mesh.fsdp) == (2, 4)
    assert compiled.config.train.compute_dtype == "float32"


@pytest.mark.parametrize(("error", "needed"), [(EARLY, 20.01), (LATE, 25.36)])
def test_a_refusal_tells_what_is_needed_and_what_there_is(config, error, needed):
    found = too_large(config, abstract_state(config, make_mesh(config.mesh)), error)
    assert isinstance(found, TooLarge)
    assert found.needed == pytest.approx(needed * 2**30)
    assert found.available == pytest.approx(15.75 * 2**30)
    assert found.message == error.splitlines()[0]


def test_a_refusal_names_the_largest_allocations_where_the_compiler_does(config):
    state = abstract_state(config, make_mesh(config.mesh))
    first, second = too_large(config, state, LATE).largest
    assert first.bytes == 8 * 2**30
    assert first.shape.startswith("bf16[32,8,4096,4096]")
    assert first.source.endswith("mlp/dot_general")
    assert (second.bytes, second.source) == (500 * 2**20, "")
    assert too_large(config, state, EARLY).largest == []


def test_an_attention_that_the_machine_has_not_is_refused_in_one_line(config):
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, attention="cudnn"))
    with pytest.raises(UserError, match=r"^train\.attention = 'cudnn': .*this is cpu; 'auto' or 'xla' would do$"):
        compile_step(run, target("cpu:8"))


class Refusing:
    """A lowered step whose compilation fails."""

    def __init__(self, message):
        self.message = message

    def lower(self, *arguments):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.fixture
def failing(monkeypatch):
    """Sets how the compiler fails."""
    monkeypatch.setattr(compilation, "version", lambda name: "1.2")
    monkeypatch.setattr(compilation, "devices", lambda asked: jax.devices())
    return lambda message: monkeypatch.setattr(compilation, "make_step", lambda config, mesh: Refusing(message))


def test_a_compiler_that_fails_is_told_with_the_versions(config, failing):
    failing("INTERNAL: RET_CHECK failure\nmore")
    with pytest.raises(
        UserError, match=r"v5e:2x4: .* jax 1.2 and libtpu 1.2, which may not go together: INTERNAL: RET_CHE"
    ):
        compile_step(config, target("v5e:2x4"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        compile_step(config, target("cpu:8"))


def test_attention_that_the_target_cannot_compute_is_refused_before_it_is_traced(config, failing):
    failing("reached the compiler")
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, attention="cudnn"))
    with pytest.raises(UserError, match=r"train.attention = 'cudnn': cuDNN runs on GPU, and this is cpu"):
        compile_step(run, target("v5e:2x4"))


def test_a_step_that_the_compiler_finds_too_large_is_an_outcome(config, failing):
    failing(EARLY)
    outcome = compile_step(config, target("v5e:2x4"))
    assert isinstance(outcome, TooLarge)
    assert outcome.config.train.compute_dtype == "bfloat16"


def test_the_most_at_once_on_a_device_leaves_out_what_the_compiler_adds_of_the_host():
    names = ("argument", "temp", "output", "alias", "generated_code")
    sizes = {f"{place}{name}_size_in_bytes": 0 for name in names for place in ("", "host_")}
    told = {"argument_size_in_bytes": 3, "temp_size_in_bytes": 20, "host_temp_size_in_bytes": 50}
    stats = types.SimpleNamespace(**{**sizes, **told}, peak_memory_in_bytes=53)
    found = compilation._sizes(stats, "tpu")
    assert (found.peak, found.host) == (23, 50)
    stats.peak_memory_in_bytes = 21
    assert compilation._sizes(stats, "tpu").peak == 21
