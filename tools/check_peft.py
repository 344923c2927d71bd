"""Hold adapters against Hugging Face's PEFT, both ways, for tiny models of every family.

    pip install -e .[bench] && python tools/check_peft.py

For each case of `tests/interop/adapters.py` PEFT writes an adapter, which is read here, and what is written of it here
PEFT opens: the logits of both must be ours to 1e-5 of the largest. So must those of adapters of our own (`OWN`), whose
targets are none of theirs. Prints a line for each; exits with 1 if any differs.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import _peft
import numpy as np

from jaxllm.config import LoraConfig, PromptConfig, RankConfig, RunConfig, TuningConfig
from jaxllm.interop.peft.folder import read_peft, write_peft
from jaxllm.interop.verify import Inputs, inputs
from jaxllm.models.adapters import adapter_table
from tests.interop.adapters import CASES, FURTHER, Case, base_of, logits, norms_in

CLOSE = 1e-5

HALF = LoraConfig(targets=("query_value",), rank=3, alpha=7)
UNEVEN = LoraConfig(rank=3, alpha=7, rank_stabilised=True, ranks=(RankConfig(targets="mlp|key", rank=5, alpha=2),))
OWN = {
    "half of a fused map": ("gpt2", TuningConfig(method="lora", lora=HALF)),
    "half of a fused map of heads": ("neox", TuningConfig(method="lora", lora=HALF)),
    "half of a fused map, DoRA": (
        "gpt2",
        TuningConfig(method="lora", lora=LoraConfig(targets=("query_value", "mlp"), magnitudes=True)),
    ),
    "other ranks in a fused map": ("gpt2", TuningConfig(method="lora", lora=UNEVEN)),
    "one layer's map of many": ("bert", TuningConfig(method="lora", lora=LoraConfig(targets=("mlp/down",)))),
    "the decoder alone": ("t5", TuningConfig(method="lora", lora=LoraConfig(targets=("^layers/attention/query",)))),
    "the encoder alone": ("bart", TuningConfig(method="lora", lora=LoraConfig(targets=("^encoder/layers/mlp",)))),
    "AdaLoRA": ("llama", TuningConfig(method="adalora", lora=LoraConfig(rank=4))),
    "AdaLoRA in a fused map": ("gpt2", TuningConfig(method="adalora", lora=LoraConfig(rank=4))),
    "AdaLoRA with DoRA": ("llama", TuningConfig(method="adalora", lora=LoraConfig(rank=4, magnitudes=True))),
    "prompt": ("qwen2", TuningConfig(method="prompt", prompt=PromptConfig(length=4))),
    "prefix": ("phi", TuningConfig(method="prefix", prompt=PromptConfig(length=4))),
}
"""Adapters that begin here: of which base, and what is tuned."""


def distance(found: np.ndarray, wanted: np.ndarray, given: Inputs, all_are_real: bool) -> float:
    """The greatest difference of two outputs, as a share of the largest."""
    if not all_are_real:
        found, wanted = found[given.real_BT], wanted[given.real_BT]
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def drawn(config: RunConfig) -> dict[str, np.ndarray]:
    """Leaves of an adapter, of whose ranks AdaLoRA has taken half, and of one layer all."""
    random = np.random.RandomState(0)
    leaves = {}
    for path, leaf in adapter_table(config.model, config.tuning).items():
        array = leaf.start + 0.3 * random.standard_normal(leaf.shape)
        if path.endswith("lora_e"):
            array *= random.random(leaf.shape) < 0.5
            array[0] = 0
        leaves[path] = array.astype(np.float32)
    return leaves


def compared(name: str, base: str, case: Case | TuningConfig, folder: Path) -> bool:
    """Prints how far PEFT is from us for one adapter, and tells whether that is rounding."""
    conversion, params = base_of(base)
    model, family, norms = conversion.config, conversion.family, norms_in(conversion.config, params)
    given, is_pair, differences = inputs(model), model.architecture == "encoder_decoder", {}
    theirs = _peft.base_of(base, folder / "base")
    if isinstance(case, Case):
        adapter = _peft.adapter_of(case, theirs, folder / "theirs")
        tuning, leaves = read_peft(adapter, family, model, norms)
        config = RunConfig(base="base", model=model, tuning=tuning)
        mine = logits(config, leaves, params, given)
        differences["read"] = distance(mine, _peft.logits(theirs, adapter, given), given, is_pair)
    else:
        config = RunConfig(base="base", model=model, tuning=case)
        leaves = drawn(config)
        mine = logits(config, leaves, params, given)
    write_peft(folder / "ours", config, leaves, family, str(theirs), norms)
    differences["written"] = distance(mine, _peft.logits(theirs, folder / "ours", given), given, is_pair)
    changed = distance(mine, logits(RunConfig(model=model), {}, params, given), given, is_pair)
    listed = ", ".join(f"{way} {difference:.1e}" for way, difference in differences.items())
    print(f"{name}: {listed}; the adapter changes {changed:.1e}", flush=True)
    return max(differences.values()) <= CLOSE < changed


def main() -> int:
    _peft.quiet()
    warnings.filterwarnings("error", message=".*(missing|unexpected).*")  # of PEFT, where a name is not found
    cases = {**{name: (case.base, case) for name, case in {**CASES, **FURTHER}.items()}, **OWN}
    differ = 0
    for name, (base, case) in cases.items():
        with tempfile.TemporaryDirectory() as temporary:
            differ += not compared(name, base, case, Path(temporary))
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())
