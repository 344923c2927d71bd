import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.embedding import lookup
from jaxllm.sharding.mesh import make_mesh

TABLE = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
IDS = np.array([[1, 3, 3], [9, 0, 3]], np.int32)


def test_each_id_gets_its_row():
    np.testing.assert_array_equal(lookup(jnp.asarray(TABLE), jnp.asarray(IDS)), TABLE[IDS])


def test_gradients_of_a_repeated_id_add_up():
    gradient = jax.grad(lambda table: lookup(table, jnp.asarray(IDS)).sum())(jnp.asarray(TABLE))
    counts = np.bincount(IDS.ravel(), minlength=10)
    np.testing.assert_array_equal(gradient, np.repeat(counts[:, None], 8, axis=1))


def test_the_result_is_cut_like_the_ids():
    mesh = make_mesh(MeshConfig(data=8))
    ids = np.tile(IDS, (4, 1))
    with jax.set_mesh(mesh):
        table = jax.device_put(TABLE, NamedSharding(mesh, P()))
        rows = jax.jit(lookup)(table, jax.device_put(ids, NamedSharding(mesh, P(("data", "fsdp")))))
    np.testing.assert_array_equal(rows, TABLE[ids])
    assert rows.sharding.shard_shape(rows.shape) == (1, 3, 8)
