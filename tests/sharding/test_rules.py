"""From logical axes to mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import flatten
from jaxllm.config import LoraConfig, MeshConfig, PromptConfig, TransformerConfig, TuningConfig
from jaxllm.models.adapters import adapter_table
from jaxllm.models.table import Param, parameter_table
from jaxllm.sharding.axes import cuts
from jaxllm.sharding.gather import Types, gather_at_use
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import BATCH, REPLICAS, fsdp_dimension, spec, table_specs, without_fsdp

MODEL = TransformerConfig(tied_embeddings=False, qk_norm="head", attention_bias="all")
TABLE = parameter_table(MODEL)
SIZES = {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2}


def test_matrices_are_cut_along_both_axes():
    specs = flatten(table_specs(SIZES, TABLE))
    assert specs["layers/attention/query/kernel"] == P(None, "fsdp", "tensor", None)
    assert specs["layers/attention/output/kernel"] == P(None, "tensor", None, "fsdp")
    assert specs["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["head/kernel"] == P("fsdp", "tensor")
    assert set(specs) == set(TABLE)


ADAPTERS = adapter_table(MODEL, TuningConfig(method="lora", lora=LoraConfig(targets=("linear",), rank=6)))
PREFIX = adapter_table(MODEL, TuningConfig(method="hybrid", prompt=PromptConfig(length=10), lora=LoraConfig()))


def test_factors_without_the_width_are_cut_along_fsdp_by_what_it_divides_most_of():
    specs = flatten(table_specs(SIZES, ADAPTERS | PREFIX))
    assert specs["layers/attention/query/lora_a"] == P(None, "fsdp", None)
    assert specs["layers/attention/query/lora_b"] == P(None, None, "tensor", "fsdp")
    assert specs["layers/attention/output/lora_a"] == P(None, "tensor", "fsdp", None)
    assert specs["layers/mlp/up/lora_b"] == P(None, None, ("tensor", "fsdp"))
    assert specs["layers/mlp/down/lora_a"] == P(None, ("tensor", "fsdp"), None)
    assert specs["layers/attention/gated_key"] == P(None, None, "tensor", "fsdp")
    assert specs["layers/attention/query/lora_gate"] == P(None)
    whole = {path: without_fsdp(axes) for path, axes in specs.items()}
    assert whole["layers/mlp/up/lora_b"] == P(None, None, "tensor")
    assert {fsdp_dimension(axes) for axes in whole.values()} == {None}


def test_a_factor_that_fsdp_does_not_divide_by_one_axis_is_cut_by_another_or_whole():
    query, key = (Param((6, 10, heads, 64), ("L", "Q", axis, "H"), 0.0) for heads, axis in ((24, "N"), (12, "K")))
    assert spec({**SIZES, "fsdp": 12}, query) == P(None, None, ("tensor", "fsdp"), None)
    assert spec({**SIZES, "fsdp": 5}, key) == P(None, "fsdp", "tensor", None)
    assert spec({**SIZES, "fsdp": 12}, key) == spec({**SIZES, "fsdp": 128}, key) == P(None, None, "tensor", None)


def test_letter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"no rule for the logical axes \['X'\]"):
        cuts(("D", "X"))


def test_two_letters_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
        cuts(("N", "F"))


def test_gather_undoes_the_fsdp_cut_alone_and_scatters_its_gradient():
    gather = gather_at_use(Types())
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((6, 256, 4, 64)), P(None, "fsdp", "tensor", None))

        def use(kernel):
            layer = gather({"attention": {"query": {"kernel": kernel[0]}}})
            whole = layer["attention"]["query"]["kernel"]
            assert jax.typeof(whole).sharding.spec == P(None, "tensor", None, reduced=REPLICAS)
            assert jax.typeof(gather(layer)["attention"]["query"]["kernel"]) == jax.typeof(whole)
            rows = jax.sharding.reshard(jnp.ones((8, 1, 256)), P(*BATCH, None))
            return jnp.sum(jnp.einsum("BTD,DNH->BTNH", rows, whole))

        gradient = jax.jit(jax.grad(use))(kernel)
    assert gradient.sharding.spec == kernel.sharding.spec
    np.testing.assert_array_equal(
        gradient, np.where(np.arange(6)[:, None, None, None] == 0, 8.0, np.zeros((6, 256, 4, 64)))
    )


def test_vectors_are_not_cut_along_fsdp():
    specs = flatten(table_specs(SIZES, TABLE))
    assert specs["layers/attention_norm/scale"] == P(None, None)
    assert specs["layers/attention/output/bias"] == P(None, None)
    assert specs["layers/attention/query/bias"] == P(None, "tensor", None)
    assert specs["final_norm/scale"] == P(None)
