"""The training step: one result, however it is cut."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.extend
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import flatten
from jaxllm.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    TransformerConfig,
)
from jaxllm.models.summary import count_parameters, memory
from jaxllm.models.table import parameter_table
from jaxllm.planning.compilation import abstract_batch
from jaxllm.sharding.axes import cuts
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import place
from jaxllm.sharding.rules import table_specs
from jaxllm.sharding.zero import summed
from jaxllm.train import state as state_module
from jaxllm.train.state import abstract_state, initial_state
from jaxllm.train.step import accumulated, make_step, travel_types

MODEL = TransformerConfig(vocab_size=64, width=32, layers=2, heads=8, kv_heads=4, head_dim=8, ffn=48, max_positions=64)
CONFIG = RunConfig(
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
    train=TrainConfig(steps=20, batch_size=8, loss_chunk=64),
)
B, T = 8, 32


def batch(seed=0, weight=1.0):
    """Two documents a row and some tokens without a weight, unevenly over the rows."""
    rng = np.random.default_rng(seed)
    split = np.arange(T) < 11
    return {
        "tokens": rng.integers(0, 64, (B, T)).astype(np.int32),
        "targets": rng.integers(0, 64, (B, T)).astype(np.int32),
        "segments": np.tile(np.where(split, 1, 2).astype(np.int32), (B, 1)),
        "positions": np.tile(np.where(split, np.arange(T), np.arange(T) - 11).astype(np.int32), (B, 1)),
        "weights": (rng.random((B, T)) < np.linspace(0.1, 1, B)[:, None]).astype(np.float32) * weight,
    }


@functools.cache
def started(model, optimizer, ema_decay):
    """The state on the host, which is the same on any mesh."""
    config = RunConfig(model=model, optimizer=optimizer, train=TrainConfig(ema_decay=ema_decay))
    return jax.tree.map(np.asarray, initial_state(config, make_mesh(config.mesh, jax.devices()[:1])))


def run(config, sizes=None, devices=1, steps=20, bad_at=()):
    config = dataclasses.replace(config, mesh=MeshConfig(**(sizes or {})))
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    start, wanted = started(config.model, config.optimizer, config.train.ema_decay), abstract_state(config, mesh)
    state = jax.tree.map(lambda x, as_cut: jax.device_put(x, as_cut.sharding), start, wanted)
    step = make_step(config, mesh)
    history = []
    for k in range(steps):
        state, metrics = step(state, place(batch(k, np.nan if k in bad_at else 1.0), mesh))
        history.append({name: np.asarray(value) for name, value in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def one_device():
    return run(CONFIG)


def losses(history):
    return np.array([m["loss"] for m in history])


MESHES = [
    {"data": 8},
    *({"data": 1, "fsdp": 8, "zero_stage": stage} for stage in range(4)),
    *({"data": 2, "fsdp": 4, "zero_stage": stage} for stage in (1, 2, 3)),
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "fsdp": 2, "tensor": 4, "zero_stage": 2},
    {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2},
    {"data": 2, "sequence": 4},
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_mesh_and_stage_gives_the_losses_and_parameters_of_one_device(one_device, mesh):
    state, history = run(CONFIG, mesh, devices=8)
    np.testing.assert_allclose(losses(history), losses(one_device[1]), atol=1e-5)
    for path, leaf in flatten(state.params).items():
        np.testing.assert_allclose(leaf, flatten(one_device[0].params)[path], atol=1e-5, err_msg=path)


def test_gradients_of_replicas_are_those_of_one_device_with_the_whole_batch(one_device):
    def gradients(sizes, devices):
        config = dataclasses.replace(CONFIG, mesh=MeshConfig(**sizes, zero_stage=0))
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        cut = table_specs(mesh.shape, parameter_table(MODEL))
        state = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), one_device[0], abstract_state(config, mesh))

        @jax.jit
        def mean(state, batch):
            grads, weight, _ = accumulated(config, state, batch)
            return jax.tree.map(lambda g: g / weight, summed(grads, cut, 0, "float32"))

        with jax.set_mesh(mesh):
            return flatten(mean(state, place(batch(), mesh)))

    alone, replicas = gradients({}, 1), gradients({"data": 8}, 8)
    for path, gradient in replicas.items():
        assert np.abs(alone[path]).max() > 1e-4, path
        np.testing.assert_allclose(gradient, alone[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "mesh", [{}, {"data": 2}, *({"data": 2, "fsdp": 1 if stage == 3 else 2, "zero_stage": stage} for stage in range(4))]
)
def test_microbatches_give_the_losses_of_the_whole_batch(one_device, mesh):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=2))
    _, history = run(config, mesh, mesh.get("data", 1) * mesh.get("fsdp", 1))
    np.testing.assert_allclose(losses(history), losses(one_device[1]), atol=1e-5)


FACTORED = dataclasses.replace(MODEL, vocab_size=256, width=128, ffn=256)
"""Its embeddings and the matrices of its MLPs are large enough for Adafactor's rows and columns."""


@pytest.mark.parametrize("kind", ["muon", "adafactor", "lion"])
def test_every_optimizer_gives_one_result_when_cut(kind):
    optimizer = dataclasses.replace(CONFIG.optimizer, kind=kind)
    config = dataclasses.replace(CONFIG, model=FACTORED, optimizer=optimizer)
    (_, whole), (state, cut) = (
        run(config, sizes, n, steps=4) for sizes, n in (({}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 8))
    )
    np.testing.assert_allclose(losses(cut), losses(whole), atol=1e-5)
    params = flatten(state.params)
    found = {path: leaf for path, leaf in flatten(state.opt_state).items() if leaf.ndim and "ns_coeffs" not in path}
    for path, leaf in found.items():
        (name,) = [n for n in params if path.endswith("/" + n)]
        assert leaf.sharding.spec == moment_spec(path, leaf, params[name]), path
    assert any(leaf.sharding.spec == P("fsdp") for leaf in found.values()) == (kind == "adafactor")


def moment_spec(path, moment, param):
    """The cut of the parameter, less the axis over which a factor of Adafactor sums; an empty factor has shape (1,)."""
    if moment.shape == param.shape:
        return param.sharding.spec
    if moment.shape == (1,):
        return P(None)
    *_, second, first = np.argsort(param.shape)
    gone = first if "/v_row/" in path else second
    return P(*(axis for i, axis in enumerate(param.sharding.spec) if i != gone))


@pytest.mark.parametrize("remat", ["none", "attention", "full", "offload", "offload_inputs"])
def test_what_the_backward_pass_computes_again_changes_nothing(one_device, remat):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, remat=remat))
    np.testing.assert_allclose(losses(run(config, steps=3)[1]), losses(one_device[1])[:3], atol=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_gradients_that_travel_in_bfloat16_train_alike(one_device, stage):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, reduce_dtype="bfloat16"))
    state, history = run(config, {"data": 2, "fsdp": 4, "zero_stage": stage}, 8, steps=5)
    np.testing.assert_allclose(losses(history), losses(one_device[1])[:5], atol=0.005)
    assert not np.array_equal(losses(history), losses(one_device[1])[:5])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


def travelling(stage, **types):
    """Types of what is gathered and of what is summed for each cut parameter, as the step asks for it.

    (In the compiled program the CPU widens bfloat16.)
    """
    mesh = MeshConfig(data=2, fsdp=4, zero_stage=stage)
    config = dataclasses.replace(CONFIG, mesh=mesh, train=dataclasses.replace(CONFIG.train, **types))
    made = make_mesh(mesh)
    cut, data = table_specs(made.shape, parameter_table(MODEL)), dataclasses.replace(DataConfig(), sequence_length=T)

    def gradients(state, batch):
        return summed(accumulated(config, state, batch)[0], cut, stage, travel_types(config).summed)

    with jax.set_mesh(made):
        shapes = abstract_batch(dataclasses.replace(config, data=data), made)
        jaxpr = jax.make_jaxpr(gradients)(abstract_state(config, made), shapes)
    gathered, added = Counter(), Counter()
    for before, after in moves(jaxpr.jaxpr):
        old, new = before.sharding.spec, after.sharding.spec
        if "fsdp" in old.partitions and "fsdp" not in new.partitions:
            gathered[before.dtype.name] += 1
        if "data" in old.unreduced - new.unreduced:
            added[before.dtype.name] += 1
    return gathered, added


def moves(jaxpr):
    """Types before and after each reshard of a program, and of those within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "reshard":
            yield equation.invars[0].aval, equation.outvars[0].aval
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from moves(inner)


@pytest.mark.parametrize("stage", range(4))
def test_parameters_travel_in_the_type_of_the_products_and_gradients_in_the_one_asked_for(stage):
    cut = sum(("fsdp",) in cuts(leaf.axes) for leaf in parameter_table(MODEL).values())
    for compute_dtype, reduce_dtype in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        gathered, added = travelling(stage, compute_dtype=compute_dtype, reduce_dtype=reduce_dtype)
        assert gathered == ({compute_dtype: 2 * cut - 1} if stage == 3 else {})  # the embedding once, the others twice
        # In stage 0 products over cut rows sum in their own type, unless that is not the one asked for.
        assert added == ({} if stage == 0 and reduce_dtype == "float32" else {reduce_dtype: cut})


def test_optimizer_state_in_the_memory_of_the_host_changes_nothing(one_device):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, offload_optimizer=True))
    state, history = run(config, {"data": 1, "fsdp": 2}, devices=2, steps=3)
    np.testing.assert_allclose(losses(history), losses(one_device[1])[:3], atol=1e-5)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.params)} == {"device"}


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_a_first_moment_in_bfloat16_takes_half_its_room_and_trains_alike(kind):
    optimizer = dataclasses.replace(CONFIG.optimizer, kind=kind)
    whole = dataclasses.replace(CONFIG, optimizer=optimizer)
    half = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(optimizer, momentum_dtype="bfloat16"))
    (before, expected), (after, actual) = run(whole, steps=5), run(half, steps=5)
    np.testing.assert_allclose(losses(actual), losses(expected), atol=0.02)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(state.opt_state) if x.ndim) for state in (before, after)]
    expected_sizes = [memory(c).optimizer for c in (whole, half)]
    assert sizes == pytest.approx(expected_sizes, rel=1e-3)  # Muon's state holds three coefficients besides
    assert sizes[1] < sizes[0]


def test_loss_falls_on_one_batch_and_starts_at_the_log_of_the_vocabulary():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state, step = initial_state(CONFIG, mesh), make_step(CONFIG, mesh)
    cut = place(batch(), mesh)
    history = []
    for _ in range(20):
        state, metrics = step(state, cut)
        history.append(float(metrics["loss"]))
    assert abs(history[0] - np.log(64)) < 0.2
    assert history[-1] < history[0] - 0.5


@pytest.mark.parametrize(
    "mesh",
    [
        *({"data": 2, "fsdp": 2, "tensor": 2, "zero_stage": stage} for stage in range(4)),
        {"data": 1, "fsdp": 2, "tensor": 4, "zero_stage": 3},
    ],
    ids=str,
)
def test_every_leaf_of_the_state_is_cut_as_the_stage_says_before_and_after_a_step(mesh):
    stage = mesh["zero_stage"]
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, ema_decay=0.9))
    cut = flatten(table_specs(mesh, parameter_table(MODEL)))
    whole = {path: P(*(None if axis == "fsdp" else axis for axis in spec)) for path, spec in cut.items()}
    wanted = {"params": cut if stage == 3 else whole, "opt_state": cut if stage >= 1 else whole}
    wanted["ema"] = wanted["opt_state"]
    new = initial_state(dataclasses.replace(config, mesh=MeshConfig(**mesh)), make_mesh(MeshConfig(**mesh)))
    for state in (new, run(config, mesh, devices=8, steps=1)[0]):
        leaves = {path: leaf for path, leaf in flatten(state).items() if leaf.ndim > 0}
        assert len(leaves) == 4 * len(cut)
        for path, leaf in leaves.items():
            (name,) = [n for n in cut if path.endswith("/" + n)]
            spec = wanted[path.split("/")[0]][name]
            assert leaf.sharding.spec == spec, path
            parts = np.prod([leaf.sharding.mesh.shape[axis] for axis in spec if axis])
            assert leaf.addressable_shards[0].data.size * parts == leaf.size, path


WIDE = dataclasses.replace(MODEL, width=256, kv_heads=8, head_dim=32, ffn=512)
"""Its vectors, which are never cut, weigh little."""


FORMULA = {0: (16, 0), 1: (8, 8), 2: (4, 12), 3: (0, 16)}
"""Of each stage: bytes a parameter on each device, and bytes a parameter that all along `fsdp` hold together."""


@pytest.mark.parametrize(
    "mesh",
    [
        *({"data": 1, "fsdp": 8, "zero_stage": stage} for stage in FORMULA),
        {"data": 2, "fsdp": 4, "zero_stage": 3},
        {"data": 1, "fsdp": 4, "tensor": 2, "zero_stage": 2},
        {"data": 1, "fsdp": 2, "tensor": 4, "zero_stage": 3},
    ],
    ids=str,
)
def test_each_device_holds_the_bytes_of_the_formula(mesh):
    config = dataclasses.replace(CONFIG, model=WIDE, mesh=MeshConfig(**mesh))
    mesh = make_mesh(config.mesh)
    state = initial_state(config, mesh)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    with jax.set_mesh(mesh):
        grads = jax.eval_shape(lambda *args: accumulated(config, *args)[0], state, place(batch(), mesh))
    held += sum(4 * np.prod(g.sharding.shard_shape(g.shape)) for g in jax.tree.leaves(grads))
    each, together = FORMULA[config.mesh.zero_stage]
    expected = (each + together / mesh.shape["fsdp"]) * count_parameters(config.model) / mesh.shape["tensor"]
    assert held == pytest.approx(expected, rel=0.02)


def test_abstract_state_has_the_shapes_types_and_cuts_of_the_real_one():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    shapes, state = abstract_state(CONFIG, mesh), initial_state(CONFIG, mesh)
    for path, leaf in flatten(state).items():
        shape = flatten(shapes)[path]
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype), path
        assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path


def test_initial_parameters_do_not_depend_on_the_mesh():
    wide = dataclasses.replace(
        CONFIG, model=dataclasses.replace(MODEL, width=128, heads=8, kv_heads=8, head_dim=16, ffn=256)
    )
    one, many = (
        flatten(initial_state(wide, make_mesh(MeshConfig(**sizes), jax.devices()[:n])).params)
        for sizes, n in (({}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 8))
    )
    for path in one:
        np.testing.assert_array_equal(one[path], many[path], err_msg=path)


@pytest.mark.parametrize("stage", [1, 3])
def test_each_device_draws_its_own_part_of_the_first_state(stage):
    config = dataclasses.replace(CONFIG, model=WIDE, mesh=MeshConfig(data=1, fsdp=8, zero_stage=stage))
    mesh = make_mesh(config.mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))
    with jax.set_mesh(mesh):
        made = jax.jit(functools.partial(state_module._create, config, given={}), out_shardings=shardings)
        sizes = made.lower(jax.random.key(0)).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < sizes.output_size_in_bytes


def test_multi_query_attention_trains_under_a_mesh():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, kv_heads=1))
    alone, cut = (losses(run(config, sizes, devices, steps=2)[1]) for sizes, devices in (({}, 1), ({"fsdp": 4}, 4)))
    np.testing.assert_allclose(cut, alone, atol=1e-5)


def test_step_that_is_not_finite_is_skipped_and_counted_when_asked():
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, skip_nonfinite=True, ema_decay=0.9))
    state, history = run(config, steps=3, bad_at={1})
    assert [bool(m["finite"]) for m in history] == [True, False, True]
    assert [int(m["skipped"]) for m in history] == [0, 1, 1]
    # Warm-up: the step after the skipped one takes the rate that the skipped one did not use.
    np.testing.assert_allclose([m["learning_rate"] for m in history], [0.0, 0.005, 0.005], atol=1e-9)
    assert int(state.step) == 3
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    mesh = make_mesh(CONFIG.mesh, jax.devices()[:1])
    _, metrics = make_step(CONFIG, mesh)(initial_state(CONFIG, mesh), place(batch(weight=0.0), mesh))
    assert [float(metrics[name]) for name in ("loss", "grad_norm", "tokens", "finite")] == [0.0, 0.0, 0.0, 1.0]


def test_ema_follows_the_parameters():
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, ema_decay=0.75))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    before = jax.tree.map(np.asarray, initial_state(config, mesh))
    after, _ = run(config, steps=1)
    for path, leaf in flatten(after.ema).items():
        want = 0.75 * flatten(before.ema)[path] + 0.25 * np.asarray(flatten(after.params)[path])
        np.testing.assert_allclose(leaf, want, atol=1e-7, err_msg=path)


def test_dropout_is_the_same_on_any_mesh(one_device):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, dropout=0.2))
    alone, cut = (
        losses(run(config, sizes, devices, steps=3)[1])
        for sizes, devices in (({}, 1), ({"data": 2, "fsdp": 2, "sequence": 2}, 8))
    )
    assert np.abs(alone - losses(one_device[1])[:3]).min() > 1e-3
    np.testing.assert_allclose(cut, alone, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_a_close_loss(one_device):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, compute_dtype="bfloat16"))
    state, history = run(config, steps=3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    np.testing.assert_allclose(losses(history), losses(one_device[1])[:3], atol=0.02)
