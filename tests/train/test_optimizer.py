"""Schedules and update rules against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.common.trees import flatten, map_with_path, nest
from jaxllm.config import OptimizerConfig, ScheduleConfig, TransformerConfig
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import initial
from jaxllm.train.optimizer import learning_rate, make_optimizer

TABLE = parameter_table(
    TransformerConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, tied_embeddings=False)
)


def rates(kind, at, **fields):
    config = OptimizerConfig(learning_rate=2.0, schedule=ScheduleConfig(kind=kind, warmup_steps=10, **fields))
    schedule = learning_rate(config, 110)
    return [round(float(schedule(step)), 5) for step in at]


def test_schedules_warm_up_and_end_where_they_say():
    assert rates("constant", (0, 5, 10, 109)) == [0.0, 1.0, 2.0, 2.0]
    assert rates("linear", (5, 10, 60, 110), final_fraction=0.1) == [1.0, 2.0, 1.1, 0.2]
    assert rates("cosine", (5, 10, 60, 110), final_fraction=0.1) == [1.0, 2.0, 1.1, 0.2]
    assert rates("wsd", (10, 88, 99, 110), final_fraction=0.0, decay_fraction=0.2) == [2.0, 2.0, 1.0, 0.0]


def one_update(config, params, grads, steps=100):
    optimizer = make_optimizer(config, steps, TABLE)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return flatten(updates)


def flat_schedule(**fields):
    return OptimizerConfig(schedule=ScheduleConfig(kind="constant", warmup_steps=0), **fields)


def test_first_adamw_update_is_the_sign_and_decay_touches_matrices_alone():
    params = jax.tree.map(jnp.ones_like, initial(jax.random.key(0), TABLE))
    grads = jax.tree.map(lambda p: jnp.full_like(p, -0.3), params)
    updates = one_update(flat_schedule(learning_rate=0.5, weight_decay=0.1, clip_norm=None), params, grads)
    for path, update in updates.items():
        decayed = "kernel" in path
        np.testing.assert_allclose(update, 0.5 * (1.0 - 0.1 * decayed), rtol=1e-5, err_msg=path)


def test_first_lion_update_is_the_sign():
    params = initial(jax.random.key(0), TABLE)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    updates = one_update(flat_schedule(kind="lion", learning_rate=0.5, weight_decay=0.0), params, grads)
    assert all(np.all(u == -0.5) for u in updates.values())


def test_adafactor_keeps_rows_and_columns_of_large_matrices_only():
    table = parameter_table(
        TransformerConfig(vocab_size=256, width=128, layers=1, heads=2, kv_heads=2, head_dim=128, ffn=256)
    )
    optimizer = make_optimizer(OptimizerConfig(kind="adafactor"), 10, table)
    sizes = jax.eval_shape(optimizer.init, initial(jax.random.key(0), table))
    moments = sum(x.size for x in jax.tree.leaves(sizes))
    assert moments < 0.05 * sum(leaf.size for leaf in table.values())


def test_adafactor_takes_each_layers_matrix_by_itself():
    params = initial(jax.random.key(0), TABLE)
    params = map_with_path(lambda path, p: p.at[1].multiply(100.0) if path.startswith("layers") else p, params)
    grads = map_with_path(lambda path, p: jax.random.normal(jax.random.key(len(path)), p.shape), params)
    config = flat_schedule(kind="adafactor", learning_rate=1.0, weight_decay=0.0, clip_norm=None)
    update = one_update(config, params, grads)["layers/mlp/up/kernel"]
    for layer, param in zip(update, params["layers"]["mlp"]["up"]["kernel"], strict=True):
        # The first step's updates are signs, of root mean square 1, whose scale is the matrix's own.
        np.testing.assert_allclose(rms(layer), max(1e-3, rms(param)), rtol=0.05)


def rms(x):
    return float(jnp.sqrt(jnp.mean(x * x)))


def test_muon_orthogonalises_the_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    params = initial(jax.random.key(0), TABLE)
    grads = map_with_path(lambda path, p: jax.random.normal(jax.random.key(len(path)), p.shape), params)
    updates = one_update(flat_schedule(kind="muon", learning_rate=1.0, b1=0.95, weight_decay=0.0), params, grads)
    for path, (reads, writes) in {
        "layers/attention/query/kernel": (16, 16),
        "layers/attention/output/kernel": (16, 16),
        "layers/mlp/gate/kernel": (16, 24),
        "layers/mlp/down/kernel": (24, 16),
    }.items():
        for layer in np.asarray(updates[path]):
            values = np.linalg.svd(layer.reshape(reads, writes), compute_uv=False)
            scale = 0.2 * max(reads, writes) ** 0.5
            assert np.all((values > 0.4 * scale) & (values < 1.4 * scale)), path
    nesterov = 1.0 + 0.9 * 0.1 / (1 - 0.9**2)
    np.testing.assert_allclose(np.abs(updates["embedding/tokens"]), nesterov, rtol=1e-3)
    np.testing.assert_allclose(np.abs(updates["head/kernel"]), nesterov, rtol=1e-3)


def test_clipping_scales_the_whole_gradient_to_the_norm():
    params = initial(jax.random.key(0), TABLE)
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = make_optimizer(flat_schedule(clip_norm=0.25), 10, TABLE)
    state = optimizer.init(params)
    _, after = jax.jit(optimizer.update)(grads, state, params)
    (adam,) = [s for s in jax.tree.leaves(after, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    np.testing.assert_allclose(optax.tree.norm(adam.mu), 0.25 * (1 - 0.9), rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "lion", "muon"])
def test_every_rule_descends_a_quadratic(kind):
    start = initial(jax.random.key(0), TABLE)
    goal = jax.tree.map(lambda p: p + 0.05, start)
    optimizer = make_optimizer(flat_schedule(kind=kind, learning_rate=0.01, weight_decay=0.0), 40, TABLE)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda p, g: p - g, params, goal)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), optax.tree.norm(grads)

        return jax.lax.scan(step, (params, optimizer.init(params)), length=40)[1]

    distances = run(start)
    # Adafactor's steps are a hundredth of the parameter's size, which is smaller than the way to go.
    assert distances[-1] < (0.9 if kind == "adafactor" else 0.7) * distances[0]


def test_tables_and_parameters_have_one_structure():
    assert jax.tree.structure(nest(dict.fromkeys(TABLE, 0))) == jax.tree.structure(initial(jax.random.key(0), TABLE))
