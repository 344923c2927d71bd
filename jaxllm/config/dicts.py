"""Configurations as plain dicts and back, and what differs between two."""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxllm.config.error import UserError

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """The configuration as plain dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return [to_dict(c) for c in config] if isinstance(config, list | tuple) else config


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`; fields that are left out have their defaults.

    Raises:
        UserError: with all that `read_dict` finds wrong.
    """
    config, mistakes = read_dict(cls, values)
    if mistakes:
        raise UserError("\n".join(mistakes.values()))
    return config


def read_dict(cls: type[T], values: Mapping[str, Any]) -> tuple[T, dict[str, str]]:
    """`values` as a `cls` that has its defaults where they cannot be read; and for each such field what is wrong.

    Wrong are a key that `cls` does not have, which is told of with the nearest that it has, and a value of another
    type.
    """
    mistakes: dict[str, str] = {}
    return _read(cls, values, cls(), "", mistakes), mistakes


def _read(hint: Any, value: Any, default: Any, where: str, mistakes: dict[str, str]) -> Any:
    """`value` as a `hint`; else the `default`, and an entry in `mistakes`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints, prefix, known = typing.get_type_hints(hint), f"{where}." if where else "", {}
        for key, item in value.items():
            name = f"{prefix}{key}"
            if key in hints:
                known[key] = _read(hints[key], item, getattr(default, key), name, mistakes)
            else:
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)[0]
                mistakes[name] = f"{name}: there is no such field; the nearest is {prefix}{near}"
        return typing.cast(type, hint)(**known)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(args[0], item, args[0](), f"{where}.{i}", mistakes) for i, item in enumerate(value))
    if origin is types.UnionType:  # the only ones are `X | None`
        return None if value is None else _read(args[0], value, default, where, mistakes)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if value in args if origin is Literal else type(value) is hint:
        return value
    mistakes[where] = f"{where or 'the configuration'} = {value!r}: expected {expected(hint)}"
    return default


def expected(hint: Any) -> str:
    """What a field of that type takes, in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each of it {expected(args[0])}"
    if origin is types.UnionType:  # the only ones are `X | None`
        return f"{expected(args[0])}, or None"
    if dataclasses.is_dataclass(hint):
        return f"the fields of a {typing.cast(type, hint).__name__}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """`field: old -> new` for each leaf in which two configurations differ."""
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{where}: {old!r} -> {new!r}"]
    prefix = f"{where}." if where else ""
    return [line for name, a, b in pairs for line in differences(a, b, prefix + name)]
