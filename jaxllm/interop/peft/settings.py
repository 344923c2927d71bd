"""What `adapter_config.json` says that has a meaning here; what has none is refused, so that nothing gets lost."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.config import UserError
from jaxllm.interop.peft.modules import is_meant
from jaxllm.interop.settings import Settings

LOW_RANK_TYPES, VIRTUAL_TYPES = ("LORA", "ADALORA"), ("PROMPT_TUNING", "PREFIX_TUNING")
"""Kinds of adapters that are read."""

READ = {
    *("peft_type", "r", "init_r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("init_lora_weights", "bias", "num_virtual_tokens"),
}
"""Keys that are read."""

WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("fan_in_fan_out", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "velora_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "prompt_tuning_init"),
    *("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_hidden_size"),
    *("prefix_projection", "init_weights"),
}
"""Keys of how an adapter was trained, and of what its tensors say themselves."""

OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How the names begin of beginnings that change the base too."""


def check(settings: Settings) -> None:
    """
    Raises:
        UserError: a kind that is not known, or a setting without a meaning here.
    """
    if settings["peft_type"] not in (*LOW_RANK_TYPES, *VIRTUAL_TYPES):
        raise settings.refuse("peft_type", f"one of {', '.join((*LOW_RANK_TYPES, *VIRTUAL_TYPES))} would do")
    settings.require(bias="none")
    if settings.get("modules_to_save"):
        raise settings.refuse("modules_to_save", "parameters of the base that were trained too are not supported")
    begins = settings.get("init_lora_weights", True)
    if isinstance(begins, str) and begins.lower().startswith(OTHER_BASES):
        raise settings.refuse(
            "init_lora_weights",
            "is an adapter for a base that was changed at its beginning; let PEFT write it anew, by save_pretrained "
            "with path_initial_model_for_weight_conversion",
        )
    for key, value in settings.values.items():
        if key not in READ | WITHOUT_EFFECT and value not in (None, False, "", [], {}):
            raise settings.refuse(key, "is not supported; only what it is when left out would do")


class Scale(NamedTuple):
    """Of one of their modules."""

    rank: int
    factor: float
    """What the product of its A and B is multiplied by."""


def scale_of(settings: Settings, name: str) -> Scale:
    """By the patterns for this module, or else what is said of all.

    Raises:
        UserError: a rank or an alpha that is none.
    """
    if settings["peft_type"] == "ADALORA":
        # 1e-5 as PEFT has it.
        rank = settings.whole("init_r", 12)
        return Scale(rank, settings.number("lora_alpha", 8.0, above=0) / (rank + 1e-5))
    ranks, alphas = settings.inner("rank_pattern"), settings.inner("alpha_pattern")
    own_rank, own_alpha = _pattern(ranks, name), _pattern(alphas, name)
    rank = settings.whole("r", 8) if own_rank is None else ranks.whole(own_rank)
    alpha = settings.number("lora_alpha", 8.0, above=0) if own_alpha is None else alphas.number(own_alpha, above=0)
    return Scale(rank, alpha / (rank**0.5 if settings.flag("use_rslora", False) else rank))


def _pattern(patterns: Settings, name: str) -> str | None:
    """The first key that stands for a module, as the library finds it."""
    return next((key for key in patterns.values if _matches(rf"(.*\.)?({key})", name, patterns)), None)


def is_target(settings: Settings, name: str) -> bool:
    """Whether a module of that name is one of the targets, as the library finds them.

    Raises:
        UserError: targets that cannot be read.
    """
    excluded = settings.get("exclude_modules", [])
    if _is_listed(settings, "exclude_modules", excluded, name):
        return False
    targets = settings.get("target_modules", "all-linear")
    if targets == "all-linear":
        return True
    if not _is_listed(settings, "target_modules", targets, name):
        return False
    layers = settings.get("layers_to_transform", [])
    layers = layers if isinstance(layers, list) else [layers]
    if isinstance(targets, str) or not layers:
        return True
    patterns = settings.get("layers_pattern", []) or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if found := _matches(rf"(?:^|.*?\.){pattern}\.(\d+)\..*", name, settings):
            return int(found[found.re.groups]) in layers
    return False


def _is_listed(settings: Settings, key: str, targets: Any, name: str) -> bool:
    """By a regex, or by a list of how names end."""
    if isinstance(targets, str):
        return _matches(targets, name, settings) is not None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise settings.refuse(key, "must be a list of names, or a regex")
    return any(is_meant(target, name) for target in targets)


def _matches(pattern: str, name: str, settings: Settings) -> re.Match[str] | None:
    try:
        return re.fullmatch(pattern, name)
    except re.error as error:
        raise UserError(f"{settings.where}: {pattern!r} is not a regex ({error})") from None


def patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The commonest value, and by their names those of modules that have another."""
    given: Sequence[float] = list(values.values())
    common = max(given, key=given.count)
    return common, {name: value for name, value in values.items() if value != common}
