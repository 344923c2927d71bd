import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.ring import zigzag
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import fetched, own_rows, place
from jaxllm.sharding.rules import BATCH


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 1, "tensor": 8},
        {"data": 2, "fsdp": 2, "sequence": 2},
        {"data": 1, "sequence": 4, "tensor": 2},
    ],
    ids=str,
)
def test_a_batch_is_placed_as_it_would_be_from_one_array(sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    own = own_rows(mesh, 16)
    assert own == tuple(range(16))
    batch = {"tokens": np.arange(128, dtype=np.int32).reshape(16, 8), "weights": np.ones((16, 8), np.float32)}
    placed = place(batch, mesh, 16)
    for name, x in batch.items():
        assert placed[name].sharding == NamedSharding(mesh, BATCH)
        assert np.asarray(placed[name]).tobytes() == x[:, zigzag(8, mesh.shape["sequence"])].tobytes()


def test_a_device_holds_an_early_and_a_late_part_of_its_rows():
    mesh = make_mesh(MeshConfig(data=2, sequence=4))
    placed = place({"tokens": np.arange(64).reshape(4, 16)}, mesh)["tokens"]
    held = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    for data in (0, 1):
        for i, places in enumerate([[0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9]]):
            device = mesh.devices[data, 0, i, 0]
            np.testing.assert_array_equal(held[device], np.add.outer([32 * data, 32 * data + 16], places))


def test_what_this_process_has_all_of_stays_where_it_is():
    x = jax.device_put(np.arange(8), NamedSharding(make_mesh(MeshConfig()), P("data")))
    assert fetched({"x": x}, keep=True)["x"] is x
    assert fetched({"x": x}, keep=False) is None
