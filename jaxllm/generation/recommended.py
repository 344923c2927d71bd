"""What the publishers of a model say of its use: `generation_config.json` in its folder."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path
from jaxllm.config import UserError, read_dict
from jaxllm.generation.config import SamplingConfig

FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The names of `SamplingConfig`, which are those of the file too."""


class Recommended(NamedTuple):
    """What the file says; none is what it does not say."""

    ends: frozenset[int] | None
    """Tokens that end a text."""
    sampling: SamplingConfig | None
    """How tokens are to be chosen. What the file leaves out of that keeps all tokens."""


def recommended(folder: str | Path) -> Recommended:
    """What is said in `folder`, which need not say anything.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = user_path(folder) / "generation_config.json"
    if not path.is_file():
        return Recommended(None, None)
    said = read_json(path, dict)
    try:
        return Recommended(_ends(said.get("eos_token_id")), _sampling(said))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _ends(said: Any) -> frozenset[int] | None:
    if said is None:
        return None
    listed = said if isinstance(said, list) else [said]
    if not listed or not all(type(i) is int for i in listed):
        raise UserError(f"eos_token_id: expected a token's number or a list of such, got {said!r:.60}")
    return frozenset(listed)


def _sampling(said: dict[str, Any]) -> SamplingConfig | None:
    named = {field: said[field] for field in FIELDS if said.get(field) is not None}
    if said.get("do_sample") is False:  # then the likeliest token is taken, whatever else is said
        named = {"temperature": 0} | {name: value for name, value in named.items() if name == "repetition_penalty"}
    elif not named and said.get("do_sample") is None:
        return None
    sampling, mistakes = read_dict(SamplingConfig, named)
    if mistakes:
        raise UserError("\n".join(mistakes.values()))
    sampling.check()
    return sampling
