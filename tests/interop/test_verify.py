import jax
import numpy as np
import pytest

from jaxllm.config import MeshConfig, UserError
from jaxllm.interop import verify
from jaxllm.interop.convert import load, plan_import
from jaxllm.interop.open import open_published
from jaxllm.interop.verify import agreement, compared, inputs, ours, rounded
from jaxllm.sharding.mesh import make_mesh
from tests.interop.folders import decoder, encoder

MESH = make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(params=[decoder, encoder], ids=lambda make: make.__name__)
def folder(request, tmp_path):
    return request.param(tmp_path / "model")


def test_an_output_that_is_off_at_one_place_is_found(folder, monkeypatch):
    def off(path, conversion, given):
        published = open_published(path)
        right = np.array(ours(conversion.config, load(published, conversion, MESH, "float32"), given))
        right[1, 3, 4] += 0.5
        return right

    monkeypatch.setattr(verify, "theirs", off)
    found = compared(folder)
    assert found.difference == pytest.approx(0.5, abs=1e-4)
    assert not found.is_rounding


def test_padding_is_not_compared(folder):
    config = plan_import(open_published(folder)).config
    given = inputs(config)
    mine = np.zeros((*given.real_BT.shape, 5), np.float32)
    other = np.where(given.real_BT[..., None], 1e-5, 9.0) * np.ones(5, np.float32)
    assert agreement(config, given, mine, other).difference == pytest.approx(1e-5)


def test_outputs_of_another_shape_are_told(folder):
    config = plan_import(open_published(folder)).config
    with pytest.raises(UserError, match=r"our outputs have the shape \[2, 24, 5\], and the others \[2, 2\]"):
        agreement(config, inputs(config), np.zeros((2, 24, 5)), np.zeros((2, 2)))


def test_an_export_is_held_against_what_was_exported(folder):
    published = open_published(folder)
    conversion = plan_import(published)
    params = load(published, conversion, MESH, "float32")
    assert rounded(folder, conversion.config, params).difference == 0
    half = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    change = rounded(folder, conversion.config, half)
    assert 1e-5 < change.difference / change.largest < 0.2
