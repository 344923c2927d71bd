"""From logical axes to mesh axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import flatten
from jaxllm.config import MeshConfig, TransformerConfig
from jaxllm.models.table import parameter_table
from jaxllm.sharding.gather import Types, gather_at_use
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.rules import BATCH, REPLICAS, param_specs, spec

TABLE = parameter_table(TransformerConfig(tied_embeddings=False, qk_norm="head", attention_bias="all"))


def test_matrices_are_cut_along_both_axes():
    specs = flatten(param_specs(TABLE))
    assert specs["layers/attention/query/kernel"] == P(None, "fsdp", "tensor", None)
    assert specs["layers/attention/output/kernel"] == P(None, "tensor", None, "fsdp")
    assert specs["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["head/kernel"] == P("fsdp", "tensor")
    assert set(specs) == set(TABLE)


def test_letter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"no rule for the logical axes \['X'\]"):
        spec(("D", "X"))


def test_two_letters_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
        spec(("N", "F"))


def test_gather_undoes_the_fsdp_cut_alone_and_scatters_its_gradient():
    gather = gather_at_use(TABLE, Types())
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        kernel = jax.device_put(jnp.ones((6, 256, 4, 64)), P(None, "fsdp", "tensor", None))

        def use(kernel):
            layer = gather("layers", {"attention": {"query": {"kernel": kernel[0]}}})
            whole = layer["attention"]["query"]["kernel"]
            assert jax.typeof(whole).sharding.spec == P(None, "tensor", None, reduced=REPLICAS)
            assert jax.typeof(gather("layers", layer)["attention"]["query"]["kernel"]) == jax.typeof(whole)
            rows = jax.sharding.reshard(jnp.ones((8, 1, 256)), P(*BATCH, None))
            return jnp.sum(jnp.einsum("BTD,DNH->BTNH", rows, whole))

        gradient = jax.jit(jax.grad(use))(kernel)
    assert gradient.sharding.spec == kernel.sharding.spec
    np.testing.assert_array_equal(
        gradient, np.where(np.arange(6)[:, None, None, None] == 0, 8.0, np.zeros((6, 256, 4, 64)))
    )


def test_vectors_are_not_cut_along_fsdp():
    specs = flatten(param_specs(TABLE))
    assert specs["layers/attention_norm/scale"] == P(None, None)
    assert specs["layers/attention/output/bias"] == P(None, None)
    assert specs["layers/attention/query/bias"] == P(None, "tensor", None)
    assert specs["final_norm/scale"] == P(None)
