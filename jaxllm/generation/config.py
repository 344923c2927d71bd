"""What a user sets for generation; without jax, so that a command checks it at once."""

from dataclasses import dataclass
from typing import Literal

from jaxllm.config import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens and those tied with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Then keep the fewest tokens that hold this probability together (1904.09751); 1 keeps all."""
    min_p: float = 0.0
    """Then keep tokens at least this likely relative to the likeliest (2407.01082); 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the text (1909.05858); 1 is none."""

    def check(self) -> None:
        """
        Raises:
            UserError: a field outside its range.
        """
        for field, valid, wanted in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 (keeps all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not valid:
                raise UserError(f"field '{field}': expected {wanted}, got {getattr(self, field)}")


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How the likeliest text is searched for, as transformers' `generate` does with `num_beams` and nothing else: no
    least length, no forced or forbidden tokens."""

    beams: int = 4
    """Unfinished texts that are kept at each step; 1 is the greedy choice."""
    length_penalty: float = 1.0
    """A finished text's log-probability is divided by its tokens to this power: above 0 favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """When to stop once there are as many finished texts as beams: at once; when the best beam, were it finished now,
    would not be among them; or when it could not be at any length."""
    best: int = 1
    """Finished texts that are given, at most `beams`."""

    def check(self) -> None:
        """
        Raises:
            UserError: a field outside its range.
        """
        for field, valid, wanted in (
            ("beams", self.beams >= 1, "1 or more"),
            ("length_penalty", abs(self.length_penalty) < float("inf"), "a number"),
            ("early_stopping", self.early_stopping in (True, False, "never"), "True, False or 'never'"),
            ("best", 1 <= self.best <= self.beams, f"1 to {self.beams} (beams)"),
        ):
            if not valid:
                raise UserError(f"field '{field}': expected {wanted}, got {getattr(self, field)}")
