"""AdaLoRA: its budget, and that ranks stay where they matter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.common.trees import flatten, nest
from jaxllm.config import AdaptiveConfig, LoraConfig, RunConfig, TrainConfig, TransformerConfig, TuningConfig
from jaxllm.models.adapters import trained_table, updates
from jaxllm.models.transformer import initial
from jaxllm.peft.adaptive import adaptive_ranks, budget, towards_orthogonal
from jaxllm.peft.merge import change, scaled_updates

MODEL = TransformerConfig(vocab_size=16, width=16, layers=4, heads=2, kv_heads=2, head_dim=8, ffn=24, max_positions=16)
STEPS, RANK = 400, 2
ADAPTIVE = AdaptiveConfig(start=2.0, warmup=0.1, settled=0.4, every=5)
TUNING = TuningConfig(method="adalora", adaptive=ADAPTIVE, lora=LoraConfig(rank=RANK, alpha=RANK))
CONFIG = RunConfig(base="base", model=MODEL, tuning=TUNING, train=TrainConfig(steps=STEPS))
PLANTED = {("layers/attention/query", 1), ("layers/mlp/down", 3), ("layers/mlp/up", 3)}


def test_the_budget_falls_on_a_cubic_curve_from_the_first_to_the_last_rank():
    found = np.array([budget(ADAPTIVE, 100, 1500, 1000, step) for step in range(100)])
    assert set(found[:11]) == {1500}
    assert set(found[60:]) == {1000}
    middle = np.arange(10, 61)
    np.testing.assert_allclose(found[10:61], 1000 + 500 * (1 - (middle - 10) / 50) ** 3, atol=0.51)
    hurried = replace(ADAPTIVE, warmup=0.9, settled=0.05)
    assert [budget(hurried, 10, 1500, 1000, step) for step in (8, 9)] == [1500, 1000]


@pytest.fixture(scope="module")
def planted():
    """A run whose loss asks for a change of rank 4 in each of three of the 28 matrices, and for none elsewhere."""
    random = np.random.default_rng(0)
    found = updates(MODEL, TUNING)
    wanted = {}
    for update in found:
        shape = (MODEL.layers, update.inputs, update.outputs)
        wanted[update.module] = np.zeros(shape, np.float32)
        for layer in range(MODEL.layers):
            if (update.module, layer) in PLANTED:
                factors = random.normal(size=(update.inputs, 4)), random.normal(size=(4, update.outputs))
                wanted[update.module][layer] = 0.3 * factors[0] @ factors[1]

    def loss(params):
        flat, total = flatten(scaled_updates(CONFIG, params)), 0.0
        for update in found:
            leaves = {name: flat[f"{update.module}/{name}"] for name in ("lora_a", "lora_b", "lora_scale")}
            total += jnp.sum((change(update, leaves).reshape(wanted[update.module].shape) - wanted[update.module]) ** 2)
        return total

    optimizer = adaptive_ranks(CONFIG, optax.with_extra_args_support(optax.adam(0.02)))
    params = initial(jax.random.key(0), trained_table(CONFIG))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            moves, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, moves), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)

    (params, state), losses = run(params)
    return flatten(params), state, np.asarray(losses), wanted


def test_of_all_ranks_as_many_are_left_as_the_budget_says(planted):
    params, state, *_ = planted
    kept = flatten(state.kept)
    assert sum(int(x.sum()) for x in kept.values()) == 7 * MODEL.layers * RANK
    for module, x in kept.items():
        assert not np.asarray(params[f"{module}/lora_e"])[~np.asarray(x)].any()


def test_ranks_stay_where_a_change_was_planted(planted):
    params, _, losses, _ = planted
    left = {
        (path.removesuffix("/lora_e"), layer): int((row != 0).sum())
        for path, x in params.items()
        if path.endswith("lora_e")
        for layer, row in enumerate(np.asarray(x))
    }
    assert {place for place, ranks in left.items() if ranks == 2 * RANK} >= PLANTED
    assert losses[-1] < 0.01 * losses[0]


def test_as_many_ranks_in_equal_shares_cannot_come_as_near(planted):
    _, _, losses, wanted = planted
    values = [np.linalg.svd(x, compute_uv=False) for x in wanted.values()]
    nearest_of_equal_ranks = sum(np.square(x[:, RANK:]).sum() for x in values)
    assert losses[-1] < 0.1 * nearest_of_equal_ranks


def test_what_matters_is_told_by_the_loss_and_not_by_the_pull_however_wide_a_module_is():
    wide = replace(MODEL, width=256, ffn=1024)
    config = replace(CONFIG, model=wide)
    params = initial(jax.random.key(0), trained_table(config))
    for path, x in flatten(params).items():
        lengths = np.square(x).reshape(4, -1, 4).sum(1) if path.endswith("lora_a") else None
        lengths = np.square(x).reshape(4, 4, -1).sum(2) if path.endswith("lora_b") else lengths
        if lengths is not None:
            assert lengths.mean() == pytest.approx(1, abs=0.3), path
    grads = nest({path: jnp.full(x.shape, 1e-6) for path, x in flatten(params).items()})
    optimizer = adaptive_ranks(config, optax.with_extra_args_support(optax.sgd(0.0)))
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for path, x in flatten(state.sensitivity).items():
        np.testing.assert_allclose(x, 0.15e-6 * np.abs(flatten(params)[path]), rtol=1e-5)


def test_the_last_step_takes_ranks_even_where_none_are_settled():
    late = replace(CONFIG, tuning=replace(TUNING, adaptive=replace(ADAPTIVE, settled=0.0, every=7)))
    late = replace(late, train=replace(late.train, steps=20))
    optimizer = adaptive_ranks(late, optax.with_extra_args_support(optax.sgd(0.1)))
    params = initial(jax.random.key(0), trained_table(late))
    state = optimizer.init(params)
    move = jax.jit(optimizer.update)
    for _ in range(20):
        moves, state = move(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, moves)
    entries = [x for path, x in flatten(params).items() if path.endswith("lora_e")]
    assert sum(int((x != 0).sum()) for x in entries) == 7 * MODEL.layers * RANK


def test_the_pull_towards_orthogonal_factors_is_the_gradient_of_the_penalty():
    def penalty(flat, update):
        a = flat[f"{update.module}/lora_a"].reshape(MODEL.layers, update.inputs, update.rank)
        b = flat[f"{update.module}/lora_b"].reshape(MODEL.layers, update.rank, update.outputs)
        one = jnp.eye(update.rank)
        return sum(jnp.sum((x.T @ x - one) ** 2) + jnp.sum((y @ y.T - one) ** 2) for x, y in zip(a, b, strict=True))

    flat = flatten(initial(jax.random.key(0), trained_table(CONFIG)))
    for update in updates(MODEL, TUNING):
        wanted = jax.grad(penalty)(flat, update)
        for path, slope in towards_orthogonal(update, flat).items():
            np.testing.assert_allclose(slope, wanted[path], atol=1e-4)
