"""Write tests/fixtures/peft/: adapters of Hugging Face's PEFT and what it computes, so that the tests need no torch.

    pip install -e .[bench] && python tools/make_peft_fixtures.py

For each case of `tests/interop/adapters.py`: `adapter_config.json`, names and shapes of the tensors beside it, two rows
of tokens, and the logits at some places. Neither the tensors nor the models are stored. Every run writes the same.
"""

import json
import tempfile
from pathlib import Path

import _peft
import numpy as np
from safetensors.numpy import load_file

from jaxllm.interop.convert import plan_import
from jaxllm.interop.verify import inputs
from tests.interop import tiny
from tests.interop.adapters import CASES, Case
from tests.interop.reference import FIXTURES

PLACES = 6
"""Of both rows together, where logits are kept."""


def fixture(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """What a file holds."""
    given = inputs(plan_import(tiny.published(case.base)).config)
    base = _peft.base_of(case.base, folder / "base")
    adapter = _peft.adapter_of(case, base, folder / "adapter")
    said = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "base"}
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = _peft.logits(base, adapter, given)
    places = np.flatnonzero(given.real_BT)
    places = places[np.linspace(0, len(places) - 1, PLACES).astype(int)]
    return {
        "config": np.array(json.dumps(said, indent=1, sort_keys=True)),
        "shapes": np.array(json.dumps({name: list(array.shape) for name, array in sorted(tensors.items())})),
        "tokens": given.tokens_BT.astype(np.int16),
        "real": given.real_BT,
        "written": given.written_BT.astype(np.int16),
        "places": places,
        "logits": found.reshape(-1, found.shape[-1])[places],
    }


def main() -> None:
    _peft.quiet()
    (FIXTURES / "peft").mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = FIXTURES / "peft" / f"{name}.npz"
        with tempfile.TemporaryDirectory() as folder:
            np.savez_compressed(path, **fixture(case, Path(folder)))
        print(f"{path}: {path.stat().st_size / 1000:.1f} kB", flush=True)


if __name__ == "__main__":
    main()
