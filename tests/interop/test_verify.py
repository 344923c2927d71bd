import json

import jax
import numpy as np
import pytest

from jaxllm.config import MeshConfig, UserError
from jaxllm.interop import verify as module
from jaxllm.interop.convert import Conversion, load, plan_import
from jaxllm.interop.open import open_published
from jaxllm.interop.verify import agreement, inputs, ours, verify
from jaxllm.sharding.mesh import make_mesh
from tests.interop.folders import decoder, encoder

MESH = make_mesh(MeshConfig(fsdp=8), jax.devices())


@pytest.fixture(params=[decoder, encoder], ids=lambda make: make.__name__)
def folder(request, tmp_path):
    return request.param(tmp_path / "model")


def read(path) -> tuple[Conversion, dict]:
    """On a mesh of all devices."""
    published = open_published(path)
    conversion = plan_import(published)
    return conversion, load(published, conversion, MESH, "float32")


@pytest.fixture
def right(monkeypatch):
    """transformers that computes as we do, but for a number that is added at one place."""
    added = []

    def theirs(path, conversion, given):
        output = np.array(ours(conversion.config, read(path)[1], given))
        output[1, 3, 4] += sum(added)
        return output

    monkeypatch.setattr(module, "theirs", theirs)
    return added


def test_a_model_that_was_kept_as_it_is_equals_its_files(folder, right):
    conversion, params = read(folder)
    found = verify(folder, conversion.config, params)
    assert found.kept.difference == 0
    assert found.theirs.difference < 1e-4
    assert found.is_sound(is_rounded=False)


def test_an_output_that_is_off_at_one_place_is_found(folder, right):
    right.append(0.5)
    found = verify(folder, read(folder)[0].config, read(folder)[1])
    assert found.theirs.difference == pytest.approx(0.5, abs=1e-4)
    assert not found.is_sound(is_rounded=False)


def test_rounded_parameters_are_told(folder, right):
    conversion, params = read(folder)
    found = verify(folder, conversion.config, jax.tree.map(lambda x: x.astype("bfloat16"), params))
    assert 1e-5 < found.kept.difference / found.kept.largest < 0.2
    assert found.is_sound(is_rounded=True)
    assert not found.is_sound(is_rounded=False)
    lost = verify(folder, conversion.config, jax.tree.map(lambda x: x * np.float32(np.inf), params))
    assert not lost.is_sound(is_rounded=True)


def test_a_config_json_that_says_something_else_is_found(folder, right):
    conversion, params = read(folder)
    values = json.loads((folder / "config.json").read_text())
    eps = next(key for key in values if key.endswith("norm_eps"))
    (folder / "config.json").write_text(json.dumps({**values, eps: 0.5}))
    found = verify(folder, conversion.config, params)
    assert found.theirs.difference < 1e-4
    assert found.kept.difference > 1e-2


def test_padding_is_not_compared(folder):
    config = read(folder)[0].config
    given = inputs(config)
    mine = np.zeros((*given.real_BT.shape, 5), np.float32)
    other = np.where(given.real_BT[..., None], 1e-5, 9.0) * np.ones(5, np.float32)
    assert agreement(config, given, mine, other).difference == pytest.approx(1e-5)


def test_outputs_of_another_shape_are_told(folder):
    config = read(folder)[0].config
    with pytest.raises(UserError, match=r"our outputs have the shape \[2, 24, 5\], and the others \[2, 2\]"):
        agreement(config, inputs(config), np.zeros((2, 24, 5)), np.zeros((2, 2)))
