import math
from dataclasses import replace
from typing import Any

import pytest

from jaxllm.config import RopeScaling, UserError
from jaxllm.interop.settings import GATED, PLAIN, Settings, rope_keys
from jaxllm.models.presets import LLAMA3_2_1B


def settings(**values: Any) -> Settings:
    return Settings(values, "model/config.json", frozenset({"encoder.layer.0.weight"}))


def test_a_key_that_is_not_there_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"model/config.json: 'hidden_size' is missing \(there is 'hiden_size'\)"):
        settings(hiden_size=8)["hidden_size"]
    with pytest.raises(UserError, match="'hidden_size' is missing"):
        settings(hidden_size=None)["hidden_size"]


def test_a_whole_number_may_be_written_with_a_point():
    assert settings(length=8192.0).whole("length") == 8192
    for wrong in (8192.5, math.inf, True, "8", 0):
        with pytest.raises(UserError, match="must be a whole number from 1 to 2147483647"):
            settings(length=wrong).whole("length")


def test_null_stands_for_the_default():
    assert settings(head_dim=None).get("head_dim", 64) == 64
    assert settings(rate=0).get("rate", 1) == 0


def test_a_value_that_cannot_be_expressed_is_refused_unless_it_is_left_out():
    settings(pretraining_tp=None, other=3).require(pretraining_tp=1, missing=False)
    with pytest.raises(UserError, match="pretraining_tp = 2: only 1 is supported"):
        settings(pretraining_tp=2).require(pretraining_tp=1)


def test_an_unknown_activation_is_refused_with_those_that_are_known():
    assert settings(act="gelu_pytorch_tanh").mlp("act", PLAIN) == "gelu"
    assert settings(act="gelu_pytorch_tanh").mlp("act", GATED) == "geglu"
    with pytest.raises(UserError, match=r"act = 'mish': one of gelu, .*relu2 would do"):
        settings(act="mish").mlp("act", PLAIN)
    with pytest.raises(UserError, match="act = 'relu': one of silu"):
        settings(act="relu").mlp("act", GATED)


def test_tensors_are_found_by_a_part_of_their_name():
    assert settings().has("encoder.")
    assert not settings().has("decoder.")


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
YARN = {"factor": 4, "original_max_position_embeddings": 32, "beta_fast": 16, "attention_factor": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1e4, 1.0, RopeScaling())),
        ({"rope_theta": 5e5, "rope_scaling": None}, (5e5, 1.0, RopeScaling())),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, (5e5, 1.0, RopeScaling())),
        ({"rotary_emb_base": 100, "rotary_pct": 0.25}, (100.0, 0.25, RopeScaling())),
        ({"partial_rotary_factor": 0.5}, (1e4, 0.5, RopeScaling())),
        ({"rope_parameters": {"rope_theta": 1, "partial_rotary_factor": 0.5}}, (1.0, 0.5, RopeScaling())),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, (1e4, 1.0, RopeScaling(kind="linear", factor=2.0))),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            (5e5, 1.0, RopeScaling(kind="llama3", factor=8.0)),
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            (5e5, 1.0, RopeScaling(kind="llama3", factor=8.0)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN}},
            (1e4, 1.0, RopeScaling(kind="yarn", factor=4.0, original_positions=32, high=16.0, attention_factor=1)),
        ),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            (1e4, 1.0, RopeScaling(kind="yarn", factor=4.0, original_positions=64, high=32.0)),
        ),
    ],
    ids=str,
)
def test_the_rotation_is_read_from_the_keys_of_any_version(values, expected):
    found = settings(**values).rope()
    assert (found["rope_theta"], found["rope_fraction"], found["rope_scaling"]) == expected


def test_a_share_that_no_key_gives_is_the_familys_own():
    assert settings().rope(0.25)["rope_fraction"] == 0.25
    assert settings(rope_parameters={"rope_theta": 1e4}).rope(0.25)["rope_fraction"] == 0.25


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope", "factor": 2}, "'longrope': one of default, linear, llama3, yarn would do"),
        ({"type": "yarn", "factor": 2, "mscale": 0.7}, "mscale = 0.7: only None is supported"),
        ({"type": "yarn", "factor": 2, "truncate": False}, "truncate = False: only True is supported"),
        ({"type": "linear"}, "'factor' is missing"),
    ],
)
def test_a_scaling_that_cannot_be_expressed_is_refused(scaling, message):
    with pytest.raises(UserError, match=f"model/config.json: rope_scaling: {message}"):
        settings(rope_scaling=scaling).rope()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling(kind="linear", factor=2.0),
        RopeScaling(kind="llama3", factor=32.0),
        RopeScaling(kind="yarn", factor=4.0, original_positions=32, low=2.0, high=8.0, attention_factor=1.5),
    ],
)
def test_a_rotation_that_is_written_is_read_again(scaling):
    config = replace(LLAMA3_2_1B, rope_scaling=scaling)
    read = settings(**rope_keys(config)).rope()
    assert read == {"rope_theta": config.rope_theta, "rope_fraction": 1.0, "rope_scaling": scaling}
