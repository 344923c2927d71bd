"""The range of a step's time, from numbers that can be added up by hand."""

import dataclasses

import pytest

from jaxllm.models.summary import flops_per_token
from jaxllm.planning.predict import BUSY, model_flops, predict, visible_share
from jaxllm.planning.program import Collective
from jaxllm.planning.topology import target
from jaxllm.planning.work import Work

NOTHING = Work(flops=0, kernel_flops=0, memory_bytes=0, cycles=0)
V5E = target("v5e:16x16")
PEAK = V5E.chip.peak_flops * V5E.chip.product_share


def test_model_flops_are_those_of_the_tokens_of_a_step(config):
    assert model_flops(config) == 16 * 32 * flops_per_token(config.model, 32).total


def test_products_alone_are_bound_by_compute(config):
    found = predict(config, V5E, NOTHING._replace(flops=int(PEAK)), [])
    assert found.bound == "compute"
    assert found.seconds.low == pytest.approx(1.0)
    assert found.seconds.high == pytest.approx(1 / BUSY)


def test_the_main_memory_can_be_the_bound(config):
    found = predict(config, V5E, Work(int(PEAK), 0, int(3 * V5E.chip.memory_bandwidth), 0), [])
    assert (found.bound, found.seconds.low) == ("memory", pytest.approx(3.0))


def test_each_network_is_named_and_added_at_the_slow_end(config):
    two = target("2xv5e:16x16")
    gather = Collective("all-gather", int(2 * two.link_bandwidth * 256 / 255), 256, 1, "")
    across = Collective("all-reduce", int(5 * two.chip.slow_bandwidth), 2, 1, "", 2)
    found = predict(config, two, NOTHING._replace(flops=int(PEAK)), [gather, across])
    assert found.bound == "DCN"
    assert found.parts["ICI"] == pytest.approx(2.0)
    assert found.parts["DCN"] == pytest.approx(5.0)
    assert found.seconds.low == pytest.approx(5.0)
    assert found.seconds.high == pytest.approx(1 / BUSY + 7)


def test_a_collective_takes_the_links_of_its_group(config):
    link = V5E.chip.link_bandwidth
    found = predict(config, V5E, NOTHING, [Collective("all-gather", int(2 * link), 2, 1, "", links=n) for n in (1, 4)])
    assert found.parts["ICI"] == pytest.approx(1 + 1 / 4)


def test_the_compilers_own_estimate_can_only_lengthen_the_slow_end(config):
    clock = V5E.chip.clock
    short = predict(config, V5E, Work(int(PEAK), 0, 0, int(0.5 * clock)), [])
    long = predict(config, V5E, Work(int(PEAK), int(0.4 * PEAK), 0, int(9 * clock)), [])
    assert short.seconds == predict(config, V5E, Work(int(PEAK), 0, 0, 0), []).seconds
    assert long.seconds.low == pytest.approx(1.0)
    assert long.seconds.high == pytest.approx(9 + 0.4 / BUSY)


def test_speed_and_utilisation_follow_from_the_time(config):
    found = predict(config, V5E, NOTHING._replace(flops=int(PEAK)), [])
    tokens = 16 * 32 / 256
    assert found.tokens_per_second_chip.high == pytest.approx(tokens)
    assert found.mfu.high == pytest.approx(model_flops(config) / 256 / V5E.chip.peak_flops)
    assert found.mfu.low == pytest.approx(found.mfu.high * BUSY)


def test_two_devices_of_a_chip_share_its_figures(config):
    chip = target("tpu7x:4x4x4")
    half = chip.chip.peak_flops * chip.chip.product_share / 2
    found = predict(config, chip, NOTHING._replace(flops=int(half)), [])
    assert found.seconds.low == pytest.approx(1.0)
    assert found.tokens_per_second_chip.high == pytest.approx(16 * 32 / 64)


def test_nothing_is_predicted_for_a_chip_without_figures(config):
    assert predict(config, target("cpu:8"), NOTHING, []) is None


def test_a_step_on_one_chip_needs_no_links(config):
    one = target("v5e:1x1")
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=1))
    assert predict(run, one, NOTHING._replace(flops=1), []).parts["ICI"] == 0


def test_attention_sees_half_of_all_pairs_and_less_in_a_window(config):
    assert visible_share(config) == pytest.approx((32 + 1) / 2 / 32)
    model = dataclasses.replace(config.model, sliding_window=8)
    assert visible_share(dataclasses.replace(config, model=model)) == pytest.approx(
        (8 * 9 / 2 + 24 * 8) / 32**2, rel=1e-3
    )
