"""Against Hugging Face's PEFT, by the fixtures that `tools/make_peft_fixtures.py` wrote."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.config import RunConfig
from jaxllm.interop.peft.folder import read_peft, write_peft
from jaxllm.interop.verify import Inputs
from tests.interop.adapters import CASES, base_of, drawn, logits, norms_in
from tests.interop.reference import FIXTURES


def adapter_of(name, folder):
    """The adapter of a fixture as PEFT wrote it."""
    with np.load(FIXTURES / "peft" / f"{name}.npz") as file:
        arrays = dict(file)
    shapes = json.loads(str(arrays["shapes"]))
    folder.mkdir()
    (folder / "adapter_config.json").write_text(str(arrays["config"]))
    tensors = {tensor: drawn(tensor, shape) for tensor, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder, arrays


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_does_what_it_does_in_peft_and_is_written_as_it_was(name, tmp_path):
    folder, arrays = adapter_of(name, tmp_path / "theirs")
    conversion, base = base_of(CASES[name].base)
    model, family, norms = conversion.config, conversion.family, norms_in(conversion.config, base)
    tuning, leaves = read_peft(folder, family, model, norms)
    config = RunConfig(base="base", model=model, tuning=tuning)
    given = Inputs(arrays["tokens"].astype(np.int32), arrays["real"], arrays["written"].astype(np.int32))
    found = logits(config, leaves, base, given)
    found = found.reshape(-1, found.shape[-1])[arrays["places"]]
    np.testing.assert_allclose(found, arrays["logits"], atol=1e-5, rtol=0)

    write_peft(tmp_path / "ours", config, leaves, family, "base", norms)
    again, others = read_peft(tmp_path / "ours", family, model, norms)
    assert again == tuning
    for path, leaf in leaves.items():
        np.testing.assert_allclose(others[path], leaf, atol=1e-7, err_msg=path)
    if name != "llama_adalora":
        assert shapes_in(tmp_path / "ours") == shapes_in(folder)


def shapes_in(folder):
    return {name: array.shape for name, array in load_file(folder / "adapter_model.safetensors").items()}
