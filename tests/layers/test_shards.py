import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.shards import along_batch
from jaxllm.sharding.mesh import make_mesh


def test_without_a_mesh_there_is_no_sharding():
    assert along_batch(jnp.zeros((2, 3)), 3) is None


def test_the_cut_of_the_first_axis_is_kept_and_the_others_are_whole():
    with jax.set_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        x = jnp.zeros((8, 2, 2), out_sharding=P("data", None, "tensor"))
        assert along_batch(x, 4).spec == P("data", None, None, None)
