"""Updates as factors: their sums, their lower ranks, and the tuning that they are."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import flatten, nest
from jaxllm.config import LoraConfig, RankConfig, RunConfig, TuningConfig
from jaxllm.models.adapters import updates
from jaxllm.peft.low_rank import Factors, added, at_most, factors_of, fitting, leaves_of, norm, tuning_of
from jaxllm.peft.merge import folded
from tests.models.small import parameters
from tests.peft.test_merge import LLAMA, LOW_RANK, begun, moved

L, I, O = 2, 12, 9


def drawn(rank, seed, scale=1.5):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(L, I, rank)), random.normal(size=(L, rank, O))
    return Factors(a.astype(np.float32), b.astype(np.float32), scale)


def change(factors):
    return factors.scale * (factors.a_LIQ.astype(np.float64) @ factors.b_LQO)


def test_the_change_of_a_sum_is_the_sum_of_the_changes():
    one, other = drawn(3, 0), drawn(2, 1, scale=0.25)
    both = added([(0.5, one), (-2.0, other)])
    assert both.rank == 5
    np.testing.assert_allclose(change(both), 0.5 * change(one) - 2 * change(other), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_lower_rank_is_the_best_one(rank):
    factors = drawn(5, 0)
    lower, lost = at_most(factors, rank)
    singular = np.linalg.svd(change(factors))[1]
    assert lower.rank == rank
    np.testing.assert_allclose(np.sqrt(np.sum(lost**2)), np.sqrt(np.sum(singular[:, rank:] ** 2)), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(change(lower) - change(factors)), np.sqrt(np.sum(lost**2)), rtol=1e-5)
    np.testing.assert_allclose(norm(factors), np.linalg.norm(change(factors)), rtol=1e-6)


def test_a_rank_that_is_not_needed_is_left_out_without_loss():
    one, other = drawn(3, 0), drawn(2, 1)
    doubled = added([(1.0, one), (1.0, other), (2.0, one)])
    lower, lost = at_most(doubled, 5)
    assert lost.shape == (L, 3)
    assert lost.max() < 1e-5
    np.testing.assert_allclose(change(lower), change(doubled), atol=1e-4)


def test_updates_fit_into_their_kernels():
    tall = {"layers/attention/key": Factors(np.ones((3, 32, 20), np.float32), np.ones((3, 20, 16), np.float32), 1.0)}
    fitted = fitting(LLAMA, tall)["layers/attention/key"]
    assert fitted.rank == 16
    np.testing.assert_allclose(change(fitted), change(tall["layers/attention/key"]), atol=1e-4)


@pytest.mark.parametrize("name", LOW_RANK)
def test_factors_are_said_as_a_tuning_again(name):
    """AdaLoRA's as those of LoRA, in which a rank that was taken is 0."""
    config, base = RunConfig(base="base", model=LLAMA, tuning=LOW_RANK[name]), parameters(LLAMA)
    adapter = flatten(moved(begun(config, base)))
    for path in adapter:
        if path.endswith("lora_e"):
            adapter[path] = adapter[path].at[1].set(0.0)
    found = factors_of(config, nest(adapter))
    if name == "adalora":
        assert not any(factors.a_LIQ[1].any() or factors.b_LQO[1].any() for factors in found.values())
    tuning = tuning_of(LLAMA, found)
    assert (tuning.method, tuning.lora.targets) == ("lora", ("linear",))
    leaves = {path: jnp.asarray(x) for path, x in leaves_of(LLAMA, found).items()}
    again = folded(RunConfig(base="base", model=LLAMA, tuning=tuning), nest(leaves), base)
    for path, x in flatten(folded(config, nest(adapter), base)).items():
        np.testing.assert_allclose(flatten(again)[path], x, atol=1e-6, err_msg=path)


def test_modules_of_other_ranks_and_scales_are_exceptions():
    ranks = (RankConfig(targets="value", rank=2, alpha=3), RankConfig(targets="output", rank=4, alpha=1))
    lora = LoraConfig(targets=("attention/",), rank=4, alpha=8, ranks=ranks, rank_stabilised=True)
    config = RunConfig(base="base", model=LLAMA, tuning=TuningConfig(method="lora", lora=lora))
    said = tuning_of(LLAMA, factors_of(config, begun(config, parameters(LLAMA))), rank_stabilised=True)
    assert said.lora.targets == ("attention",)
    wanted, found = (updates(LLAMA, tuning) for tuning in (config.tuning, said))
    assert [(u.module, u.rank) for u in found] == [(u.module, u.rank) for u in wanted]
    np.testing.assert_allclose([u.scale for u in found], [u.scale for u in wanted], rtol=1e-11)
