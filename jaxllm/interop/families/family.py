"""What a family is: how its `config.json` is read and written, and its key map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxllm.config import TransformerConfig
from jaxllm.interop.rules import Rule
from jaxllm.interop.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models, as Hugging Face's transformers writes them."""

    model_type: str
    """By which `config.json` names it."""
    read: Callable[[Settings], TransformerConfig]
    """Their configuration as ours. Raises a `UserError` for what cannot be expressed."""
    write: Callable[[TransformerConfig], dict[str, Any]]
    """The inverse, for what `read` gives: with `architectures`, without `model_type` and types."""
    rules: Callable[[TransformerConfig], Sequence[Rule]]
    """The key map."""
    prefix: str = ""
    """Which files of a model without a head leave out of names."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of names in old files, and what they are called since."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names that hold nothing: buffers, and second copies of tied tensors."""
    left_out: tuple[str, ...] = ()
    """The same of heads that no model here has; that they are lost is told."""
