"""What the publishers of a model say of its use: `generation_config.json` in its folder."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxllm.common.json_files import read_json
from jaxllm.common.paths import user_path
from jaxllm.config import UserError, read_dict
from jaxllm.generation.config import SamplingConfig

FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The names of `SamplingConfig`, which are those of the file too."""

SEARCH = ("num_beams", "length_penalty", "early_stopping")
"""What `BeamConfig` is for."""

WITHOUT_EFFECT: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "length_penalty": 1,
    "early_stopping": False,
    "diversity_penalty": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "guidance_scale": 1,
    "stop_strings": None,
    "force_words_ids": None,
    "constraints": None,
    "top_h": None,
    "watermarking_config": None,
    "penalty_alpha": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}
"""What else changes which tokens transformers chooses, at the values at which it does not."""


class Recommended(NamedTuple):
    """What the file says; none is what it does not say."""

    ends: frozenset[int] | None
    """Tokens that end a text."""
    sampling: SamplingConfig | None
    """How tokens are to be chosen. What the file leaves out of that keeps all tokens."""
    unfollowed: Mapping[str, Any] = MappingProxyType({})
    """What else the file says of the choice of tokens, by names, which is not followed."""


def recommended(folder: str | Path) -> Recommended:
    """What is said in `folder`, which need not say anything.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = user_path(folder) / "generation_config.json"
    if not path.is_file():
        return Recommended(None, None)
    said = read_json(path, dict)
    others = {key: said[key] for key, off in WITHOUT_EFFECT.items() if said.get(key) not in (None, off, [])}
    try:
        return Recommended(_ends(said.get("eos_token_id")), _sampling(said), others)
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
