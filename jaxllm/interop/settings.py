"""Their `config.json`, read with one clear message for what is not there or not known."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxllm.config import RopeScaling, TransformerConfig, UserError

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
        return {ours: self[theirs] for theirs, ours in names.items()}

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
        parameters = self.get("rope_parameters", {})
        scaling = self.get("rope_scaling", {}) or parameters
        theta = self.get("rope_theta", parameters.get("rope_theta", self.get("rotary_emb_base", 10_000.0)))
        share = self.get("partial_rotary_factor", self.get("rotary_pct", fraction))
        share = parameters.get("partial_rotary_factor", share)
        return {
            "rope_theta": float(theta),
            "rope_fraction": float(share),
            "rope_scaling": self.scaling(scaling),
        }

    def scaling(self, values: Mapping[str, Any]) -> RopeScaling:
        """Of one kind of layer.

        Raises:
            UserError: a kind that is not known, or one of its numbers that is not there.
        """
        own = Settings(values, f"{self.where}: scaling of RoPE")
        kind = own.get("rope_type", own.get("type", "default"))
        original = own.get("original_max_position_embeddings", self.get("max_position_embeddings", 8192))
        if kind == "default":
            return RopeScaling()
        if kind == "linear":
            return RopeScaling(kind="linear", factor=float(own["factor"]))
        if kind == "llama3":
            return RopeScaling(
                kind="llama3",
                factor=float(own["factor"]),
                original_positions=int(original),
                low=float(own["low_freq_factor"]),
                high=float(own["high_freq_factor"]),
            )
        if kind == "yarn":
            own.require(truncate=True, mscale=None, mscale_all_dim=None)
            return RopeScaling(
                kind="yarn",
                factor=float(own["factor"]),
                original_positions=int(original),
                low=float(own.get("beta_slow", 1)),
                high=float(own.get("beta_fast", 32)),
                attention_factor=own.get("attention_factor"),
            )
        raise UserError(f"{own.where}: {kind!r}: one of default, linear, llama3, yarn would do")


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
