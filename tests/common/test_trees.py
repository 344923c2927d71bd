from typing import NamedTuple

import jax.numpy as jnp
import pytest

from jaxllm.common.trees import flatten, label, map_with_path, nest

TREE = {"layers": {"attention": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}, "head": {"kernel": 4}}


class Pair(NamedTuple):
    first: int
    second: list[int]


def test_paths_name_keys_fields_and_places():
    assert flatten({"a": Pair(1, [2, 3])}) == {"a/first": 1, "a/second/0": 2, "a/second/1": 3}


def test_nest_undoes_flatten():
    assert nest(flatten(TREE)) == TREE


def test_map_with_path_gives_each_leaf_its_path_and_its_partners():
    doubled = map_with_path(lambda path, x, y: (path, x + y), {"a": {"b": 1}}, {"a": {"b": 10}})
    assert doubled == {"a": {"b": ("a/b", 11)}}


def test_the_first_rule_that_matches_labels_a_leaf():
    rules = [("norm|bias", "vector"), ("^layers/.*kernel", "block"), ("kernel", "head")]
    assert flatten(label(TREE, rules)) == {
        "head/kernel": "head",
        "layers/attention/bias": "vector",
        "layers/attention/kernel": "block",
        "layers/norm/scale": "vector",
    }


def test_labels_do_not_depend_on_the_leaves():
    assert label({"kernel": jnp.zeros(3)}, [("kernel", None)]) == {"kernel": None}


def test_a_leaf_without_a_rule_is_an_error_that_names_it_and_the_rules():
    with pytest.raises(ValueError, match=r"no rule matches 'layers/norm/scale'.*'kernel', 'bias'"):
        label(TREE, [("kernel", 0), ("bias", 1)])
