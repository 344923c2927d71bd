import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import fetched, own_rows, place
from jaxllm.sharding.rules import BATCH


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}])
def test_a_batch_is_placed_as_it_would_be_from_one_array(sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    own = own_rows(mesh, 16)
    assert own == tuple(range(16))
    batch = {"tokens": np.arange(48, dtype=np.int32).reshape(16, 3), "weights": np.ones((16, 3), np.float32)}
    placed = place(batch, mesh, 16)
    for name, x in batch.items():
        assert placed[name].sharding == NamedSharding(mesh, BATCH)
        assert np.asarray(placed[name]).tobytes() == x.tobytes()


def test_what_this_process_has_all_of_stays_where_it_is():
    x = jax.device_put(np.arange(8), NamedSharding(make_mesh(MeshConfig()), P("data")))
    assert fetched({"x": x}, keep=True)["x"] is x
    assert fetched({"x": x}, keep=False) is None
