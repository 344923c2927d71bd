"""Their `config.json`, read with one clear message for what is not there or not known."""

import difflib
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxllm.config import RopeScaling, TransformerConfig, UserError

LARGEST = 2**31 - 1
"""Of all whole numbers of a model's shape."""

PLAIN = {
    "gelu": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
"""Their activations, and our MLPs that have them."""

ACTIVATION = {
    "swiglu": "silu",
    "geglu": "gelu_pytorch_tanh",
    "gelu": "gelu_new",
    "gelu_erf": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""Our MLPs, and the activations that are written for them."""


@dataclass(frozen=True)
class Settings:
    """A `config.json`, and the names of the tensors beside it, which decide what heads there are."""

    values: Mapping[str, Any]
    where: str
    """The file, for messages."""
    tensors: Collection[str] = field(default_factory=frozenset)

    def refuse(self, key: str, wanted: str) -> UserError:
        """What to raise for a value that will not do."""
        return UserError(f"{self.where}: {key} = {self.values.get(key)!r:.60}: {wanted}")

    def __getitem__(self, key: str) -> Any:
        if self.values.get(key) is None:
            near = difflib.get_close_matches(key, self.values, n=1)
            hint = f" (there is {near[0]!r})" if near else ""
            raise UserError(f"{self.where}: {key!r} is missing{hint}; it is part of every such model")
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where it is not there or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number, which must be there unless there is a default."""
        value = self[key] if default is None else self.get(key, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= LARGEST:
            raise self.refuse(key, f"must be a whole number from {least} to {LARGEST}")
        return value

    def number(self, key: str, default: float | None = None, above: float = -math.inf) -> float:
        """The same of any number that a float can be."""
        value = self[key] if default is None else self.get(key, default)
        if type(value) not in (int, float) or not above < value <= sys.float_info.max:
            raise self.refuse(key, "must be a number" if above == -math.inf else f"must be a number above {above}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "must be true or false")
        return value

    def inner(self, key: str) -> "Settings":
        """What stands under a key by names; nothing where it is not there."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, "must be an object of names and values")
        return Settings(value, f"{self.where}: {key}", self.tensors)

    def require(self, **wanted: Any) -> None:
        """Passes keys that are left out, null, or as wanted.

        Raises:
            UserError: one that stands at another value.
        """
        for key, value in wanted.items():
            if self.get(key, value) != value:
                raise self.refuse(key, f"only {value!r} is supported")

    def take(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Our fields, of keys that mean the same and are in every such file."""
        kinds = {field.name: type(field.default) for field in fields(TransformerConfig)}
        return {
            ours: self.number(theirs) if kinds[ours] is float else self.whole(theirs) for theirs, ours in names.items()
        }

    def has(self, part: str) -> bool:
        """Whether a tensor has `part` in its name."""
        return any(part in name for name in self.tensors)

    def mlp(self, key: str, kinds: Mapping[str, str], default: str | None = None) -> Any:
        """The MLP, of `PLAIN` or `GATED`, whose activation `key` names; `default` is the library's, if it has one."""
        name = self[key] if default is None else self.get(key, default)
        if not isinstance(name, str) or name not in kinds:
            raise self.refuse(key, f"one of {', '.join(kinds)} would do")
        return kinds[name]

    def rope(self, fraction: float = 1.0) -> dict[str, Any]:
        """Our fields of the rotation, from the keys of any version; `fraction` where none says what is rotated."""
        parameters, scaling = self.inner("rope_parameters"), self.inner("rope_scaling")
        share = self.number("partial_rotary_factor", self.number("rotary_pct", fraction))
        theta = parameters.number("rope_theta", self.number("rotary_emb_base", 10_000.0))
        return {
            "rope_theta": self.number("rope_theta", theta),
            "rope_fraction": parameters.number("partial_rotary_factor", share),
            "rope_scaling": self.scaling(scaling if scaling.values else parameters),
        }

    def scaling(self, own: "Settings") -> RopeScaling:
        """Of one kind of layer.

        Raises:
            UserError: a kind that is not known, or one of its numbers that is not there.
        """
        kind = own.get("rope_type", own.get("type", "default"))
        if kind == "default":
            return RopeScaling()
        if kind not in ("linear", "llama3", "yarn"):
            raise UserError(f"{own.where}: {kind!r:.60}: one of default, linear, llama3, yarn would do")
        scaling = RopeScaling(kind=kind, factor=own.number("factor"))
        if kind == "linear":
            return scaling
        original = own.whole("original_max_position_embeddings", self.whole("max_position_embeddings", 8192))
        scaling = replace(scaling, original_positions=original)
        if kind == "llama3":
            return replace(scaling, low=own.number("low_freq_factor"), high=own.number("high_freq_factor"))
        own.require(truncate=True, mscale=None, mscale_all_dim=None)
        given = own.get("attention_factor") and own.number("attention_factor")
        return replace(
            scaling, low=own.number("beta_slow", 1), high=own.number("beta_fast", 32), attention_factor=given
        )


def rope_keys(config: TransformerConfig) -> dict[str, Any]:
    """Their keys of the rotation, in the form that every version reads."""
    scaling, borders = config.rope_scaling, ("low_freq_factor", "high_freq_factor")
    if scaling.kind == "none":
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    values: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        borders = ("beta_slow", "beta_fast")
    if scaling.kind != "linear":
        values |= dict(zip(borders, (scaling.low, scaling.high), strict=True))
        values["original_max_position_embeddings"] = scaling.original_positions
    if scaling.attention_factor is not None:
        values["attention_factor"] = scaling.attention_factor
    return {"rope_theta": config.rope_theta, "rope_scaling": values}
