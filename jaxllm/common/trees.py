"""Pytrees by path: `layers/attention/query/kernel` names a leaf, and ordered regexes label leaves."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

Tree = Any
"""A nested dict of arrays, shapes, specs or labels."""


def path_name(path: tuple[Any, ...]) -> str:
    """A jax key path as text, its parts joined by `/`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def map_with_path(
    fn: Callable[..., Any], tree: Tree, *rest: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> Tree:
    """`jax.tree.map`, with each leaf's path as the first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *xs: fn(path_name(path), *xs), tree, *rest, is_leaf=is_leaf)


def flatten(tree: Tree) -> dict[str, Any]:
    """`{path: leaf}` in tree order."""
    return {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nest(flat: dict[str, Any]) -> Tree:
    """The inverse of `flatten` for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def label(tree: Tree, rules: Sequence[tuple[str, Any]]) -> Tree:
    """Each leaf becomes the label of the first rule whose regex is found in its path.

    Raises:
        ValueError: a leaf that no rule matches. There is no catch-all unless a rule says so.
    """

    def find(path: str, _: Any) -> Any:
        for pattern, value in rules:
            if re.search(pattern, path):
                return value
        raise ValueError(f"no rule matches '{path}'; the rules are {[p for p, _ in rules]}")

    return map_with_path(find, tree)
