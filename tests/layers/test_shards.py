import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.shards import along_tokens, platform, where_it_lies
from jaxllm.sharding.mesh import make_mesh


def test_without_a_mesh_there_is_no_sharding():
    assert along_tokens(jnp.zeros((2, 3)), 3) is None


def test_the_cuts_of_the_first_two_axes_are_kept_and_the_others_are_whole():
    with jax.set_mesh(make_mesh(MeshConfig(data=2, sequence=2, tensor=2))):
        x = jnp.zeros((8, 2, 2), out_sharding=P("data", "sequence", "tensor"))
        assert along_tokens(x, 4).spec == P("data", "sequence", None, None)


def test_each_device_works_on_what_it_holds():
    with jax.set_mesh(make_mesh(MeshConfig(data=4, sequence=2))):
        x = jax.device_put(jnp.arange(32).reshape(8, 4), P("data", "sequence"))
        flipped = where_it_lies(lambda x: x[:, ::-1], x, lambda cut: P(*cut))
    np.testing.assert_array_equal(flipped, np.arange(32).reshape(8, 2, 2)[..., ::-1].reshape(8, 4))


def test_the_platform_is_that_of_the_mesh_in_use():
    assert platform() == "cpu"
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert platform() == "cpu"
