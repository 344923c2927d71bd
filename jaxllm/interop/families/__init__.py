"""The families that are known: a preset of `TransformerConfig` and a key map each.

One more is a file, or a few lines of one, and a place in `FAMILIES`.
"""

import difflib

from jaxllm.config import UserError
from jaxllm.interop.families.bert import BERT, ROBERTA
from jaxllm.interop.families.family import Family
from jaxllm.interop.families.gemma import GEMMA2, GEMMA3
from jaxllm.interop.families.gpt import GPT2, NEOX, PHI
from jaxllm.interop.families.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3
from jaxllm.interop.families.olmo import OLMO2
from jaxllm.interop.families.seq2seq import BART, T5
from jaxllm.interop.settings import Settings

FAMILIES = {
    family.model_type: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, GEMMA2, GEMMA3, GPT2, NEOX, PHI, OLMO2),
        *(BERT, ROBERTA, T5, BART),
    )
}
"""By their `model_type`; where several can express a configuration the first is written."""


def family_of(settings: Settings) -> Family:
    """The family that `config.json` names.

    Raises:
        UserError: none, or one that is not known.
    """
    name = str(settings.get("model_type", ""))
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(
            f"{settings.where}: model_type = {name!r}: is not supported{hint}; there are {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
