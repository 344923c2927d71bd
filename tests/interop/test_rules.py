import numpy as np
import pytest

from jaxllm.config import TransformerConfig
from jaxllm.interop.rules import Rule, contiguous, join, misfits, named, split
from jaxllm.models.table import Param, parameter_table

TABLE = {
    "embedding/tokens": Param((7, 6), tuple("VD"), 1.0),
    "q": Param((2, 6, 3, 4), tuple("LDNH"), 1.0),
    "k": Param((2, 6, 3, 4), tuple("LDNH"), 1.0),
    "up": Param((2, 5, 6, 8), tuple("LEDM"), 1.0),
    "bias": Param((7,), ("V",), 0.0),
}
EMBEDDING = Rule("tokens.weight", "V D", "embedding/tokens")
SIDE_BY_SIDE = Rule("layer.{L}.qk.weight", "D (S N H)", "q k")
WITHIN_HEADS = Rule("layer.{L}.qk.weight", "(N S H) D", "q k")
ONE = Rule("layer.{L}.q.weight", "(N H) D", "q")
EXPERTS = Rule("layer.{L}.experts.{E}.weight", "M D", "up")
ALL_EXPERTS = Rule("layer.{L}.experts.weight", "E (M) D", "up")
WITH_ONE = Rule("bias", "1 V", "bias")
RULES = [EMBEDDING, SIDE_BY_SIDE, WITHIN_HEADS, ONE, EXPERTS, ALL_EXPERTS, WITH_ONE]


def test_every_layer_and_expert_has_a_tensor_of_its_own():
    tensors = {tensor.name: tensor for tensor in named([EXPERTS, ONE, WITH_ONE], TABLE)}
    assert len(tensors) == 2 * 5 + 2 + 1
    assert tensors["layer.1.experts.4.weight"].place == (1, 4)
    assert tensors["layer.1.experts.4.weight"].shape == (8, 6)
    assert tensors["layer.0.q.weight"].shape == (12, 6)
    assert tensors["bias"].shape == (1, 7)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.axes)
def test_joining_is_the_inverse_of_splitting(rule):
    tensor = next(named([rule], TABLE))
    theirs = np.random.default_rng(0).normal(size=tensor.shape).astype(np.float32)
    parts = split(rule, TABLE, theirs)
    for path, part in zip(rule.paths, parts, strict=True):
        assert part.shape == TABLE[path].shape[len(tensor.place) :]
    again = join(rule, TABLE, parts)
    np.testing.assert_array_equal(again, theirs)
    assert again.flags.c_contiguous


def test_fused_parts_are_cut_where_they_stand():
    side, within = (np.arange(2 * 3 * 4 * 6).reshape(shape) for shape in ((6, 24), (24, 6)))
    _, key = split(SIDE_BY_SIDE, TABLE, side)
    np.testing.assert_array_equal(key, side[:, 12:].reshape(6, 3, 4))
    _, key = split(WITHIN_HEADS, TABLE, within)
    np.testing.assert_array_equal(key[:, 2], within[20:24].T)


def test_splitting_copies_nothing():
    theirs = np.zeros((12, 6), np.float32)
    assert np.shares_memory(split(ONE, TABLE, theirs)[0], theirs)


def test_a_map_fits_when_it_names_every_parameter_with_its_axes():
    fitting = [EMBEDDING, SIDE_BY_SIDE, EXPERTS, WITH_ONE]
    assert misfits(fitting, TABLE) == set()
    assert misfits(fitting[1:], TABLE) == {"embedding/tokens"}
    assert misfits([*fitting, Rule("head", "V D", "head/kernel")], TABLE) == {"head/kernel"}
    assert misfits([Rule("tokens.weight", "F D", "embedding/tokens"), *fitting[1:]], TABLE) == {"embedding/tokens"}


def test_a_tensor_may_be_placed_with_other_axes_than_the_tables():
    """Rows of equal heads, as the queries of a multi-query head that the table gives two axes."""
    table = parameter_table(TransformerConfig(kv_heads=1))
    rule = Rule("k.{L}", "D H", "layers/attention/key/kernel", "D 1 H")
    theirs = np.random.default_rng(0).normal(size=(256, 64))
    (ours,) = split(rule, table, theirs)
    assert ours.shape == table["layers/attention/key/kernel"].shape[1:]
    np.testing.assert_array_equal(join(rule, table, [ours]), theirs)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_a_view_becomes_one_run_of_memory(axes):
    view = np.arange(3 * 40 * 35).reshape(3, 40, 35).transpose(axes)[:, 1:]
    made = contiguous(view)
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, view)
    np.testing.assert_array_equal(contiguous(view[0, 0]), view[0, 0])
