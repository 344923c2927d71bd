"""Collectives of compiled programs against what was asked for, and of the training step against theory."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import DataConfig, MeshConfig, RunConfig, TrainConfig, TransformerConfig, UserError
from jaxllm.models.table import parameter_table
from jaxllm.planning.compilation import abstract_batch
from jaxllm.planning.program import Collective, collectives
from jaxllm.planning.topology import Torus
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.state import abstract_state
from jaxllm.train.step import make_step
from tests.planning.programs import ASYNC_GATHER, GATHER_OVER_SLICES, SCATTER_ON_TPU, TWO_SLICES

MODEL = TransformerConfig(
    vocab_size=64, width=32, layers=4, heads=8, kv_heads=4, head_dim=8, ffn=48, max_positions=64, tied_embeddings=False
)
CONFIG = RunConfig(
    model=MODEL, data=DataConfig(sequence_length=32), train=TrainConfig(steps=20, batch_size=8, loss_chunk=64)
)
SCALARS = 128
"""Bytes that the sums of losses and weights, and the norm of each gradient, may take."""


def test_each_kind_is_counted_with_its_bytes_and_its_loops():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def local(x):
        def body(x, _):
            whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
            part = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)
            return jnp.sin(part), None

        x, _ = jax.lax.scan(body, x, None, length=7)
        x = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)
        return jax.lax.psum(x, ("data", "fsdp"))

    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", None)))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.shard_map(local, out_specs=P(), check_vma=False)).lower(x).compile().as_text()
    found = {(c.kind, c.devices): (c.count, c.bytes) for c in collectives(program)}
    assert found[("all-gather", 4)] == (7, 64 * 16 * 4)
    assert found[("reduce-scatter", 4)] == (7, 64 * 16 * 4)
    assert found[("all-reduce", 8)] == (1, 16 * 16 * 4)
    assert found[("all-to-all", 4)] == (1, 16 * 16 * 4)


@pytest.mark.parametrize(("kind", "traffic"), [("all-gather", 1500), ("reduce-scatter", 1500), ("all-reduce", 3000)])
def test_the_traffic_of_a_ring(kind, traffic):
    assert Collective(kind, bytes=1000, devices=4, count=2, source="").traffic == traffic


def test_a_loop_without_a_trip_count_is_read_from_its_condition_and_an_unknown_one_refused():
    program = """HloModule m, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[8]{0:T(8,128)}, bf16[4,2]{1,0}) all-reduce(%x, %y), replica_groups=[2,4]<=[8], to_apply=%add
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1
}
"""
    assert collectives(program) == [Collective("all-reduce", bytes=48, devices=4, count=12, source="")]
    with pytest.raises(UserError, match="a loop whose trip count is not known: %while"):
        collectives(program.replace("direction=LT", "direction=EQ"))


def compiled(config: RunConfig, mesh: Mesh) -> Any:
    """The program of a training step."""
    return make_step(config, mesh).lower(abstract_state(config, mesh), abstract_batch(config, mesh)).compile()


def step(config: RunConfig, mesh: Mesh) -> list[Collective]:
    """The collectives of a training step."""
    return collectives(compiled(config, mesh).as_text())


def step_bytes(
    sizes: dict[str, int], stage: int = 3, parts: int = 1, model: TransformerConfig = MODEL
) -> dict[str, int]:
    """Bytes of each kind of collective in a training step on 8 devices; of those over all of them, less `SCALARS`."""
    train = dataclasses.replace(CONFIG.train, batch_size=8 * parts, accumulate=parts)
    mesh = MeshConfig(**sizes, zero_stage=stage)
    total: Counter[str] = Counter()
    for collective in step(dataclasses.replace(CONFIG, model=model, mesh=mesh, train=train), make_mesh(mesh)):
        total[f"{collective.kind} of {collective.devices}"] += collective.count * collective.bytes
    return dict(total)


def sizes_of(model: TransformerConfig) -> tuple[int, int, int]:
    """Bytes of the blocks' matrices, of embedding and head, and of the vectors."""
    table = parameter_table(model)
    ends = sum(leaf.size for path, leaf in table.items() if path.startswith(("embedding", "head")))
    blocks = sum(leaf.size for path, leaf in table.items() if leaf.is_matrix and path.startswith("layers"))
    return 4 * blocks, 4 * ends, 4 * (sum(leaf.size for leaf in table.values()) - blocks - ends)


@pytest.mark.parametrize("tied", [False, True])
def test_stage_3_gathers_each_layer_twice_and_scatters_each_gradient_once(tied):
    model = dataclasses.replace(MODEL, tied_embeddings=tied)
    blocks, ends, vectors = sizes_of(model)
    found = step_bytes({"data": 1, "fsdp": 8}, model=model)
    assert found.keys() == {"all-gather of 8", "reduce-scatter of 8", "all-reduce of 8"}
    assert found["all-gather of 8"] == 2 * blocks + ends
    assert found["reduce-scatter of 8"] == blocks + ends
    assert vectors <= found["all-reduce of 8"] <= vectors + SCALARS


@pytest.mark.parametrize(("sizes", "stage"), [({"data": 8}, 3), ({"data": 1, "fsdp": 8}, 0)], ids=str)
def test_data_parallelism_sums_each_gradient_once_and_does_nothing_else(sizes, stage):
    found = step_bytes(sizes, stage)
    assert found.keys() == {"all-reduce of 8"}
    assert sum(sizes_of(MODEL)) <= found["all-reduce of 8"] <= sum(sizes_of(MODEL)) + SCALARS


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_scatter_each_gradient_once_and_gather_each_parameter_once(stage):
    blocks, ends, vectors = sizes_of(MODEL)
    found = step_bytes({"data": 1, "fsdp": 8}, stage)
    assert found.keys() == {"all-gather of 8", "reduce-scatter of 8", "all-reduce of 8"}
    assert found["all-gather of 8"] == found["reduce-scatter of 8"] == blocks + ends
    assert vectors <= found["all-reduce of 8"] <= vectors + SCALARS


@pytest.mark.parametrize(("stage", "gathered"), [(1, (1, 1)), (2, (1, 1)), (3, (2, 1))])
def test_replicas_of_sharded_groups_sum_between_them_what_each_device_holds(stage, gathered):
    blocks, ends, vectors = sizes_of(MODEL)
    found = step_bytes({"data": 2, "fsdp": 4}, stage)
    assert found["all-gather of 4"] == gathered[0] * blocks + gathered[1] * ends
    assert found["reduce-scatter of 4"] == blocks + ends
    assert found["all-reduce of 2"] == (blocks + ends) // 4
    assert vectors <= found["all-reduce of 8"] <= vectors + SCALARS


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_parallelism_sums_activations_twice_forward_and_twice_backward_in_each_layer(tensor, tied):
    model = dataclasses.replace(MODEL, tied_embeddings=tied)
    blocks, ends, vectors = sizes_of(model)
    found = step_bytes({"data": 1, "fsdp": 8 // tensor, "tensor": tensor}, model=model)
    tokens = tensor * CONFIG.data.sequence_length  # of one device, which holds a row for each device along `tensor`
    activation, statistics = 4 * tokens * model.width, 3 * 4 * tokens  # log Z (a maximum, a sum) and the target's logit
    summed = (4 * model.layers + 2) * activation + statistics  # in the layers, after the embedding, before the head
    assert summed <= found[f"all-reduce of {tensor}"] <= summed + SCALARS
    assert found[f"all-gather of {8 // tensor}"] == (2 * blocks + ends) // tensor
    assert found[f"reduce-scatter of {8 // tensor}"] == (blocks + ends) // tensor
    assert found.keys() == {f"{kind} of {8 // tensor}" for kind in ("all-gather", "reduce-scatter", "all-reduce")} | {
        f"all-reduce of {tensor}"
    }
    assert vectors <= found[f"all-reduce of {8 // tensor}"] <= vectors + SCALARS


def test_a_ring_passes_keys_and_values_on_and_brings_their_gradients_home():
    blocks, ends, vectors = sizes_of(MODEL)
    found = step_bytes({"data": 1, "fsdp": 2, "sequence": 4})
    chunk = 4 * (8 // 2) * (32 // 4) * MODEL.kv_heads * MODEL.head_dim  # keys of the rows and tokens of one device
    forward, backward = 2 * 3, 2 * 3 + 2 * 4  # keys and values go 3 steps; with them their gradients, and one more
    assert found["collective-permute of 2"] == MODEL.layers * (forward + backward) * chunk
    assert found["all-gather of 2"] == 2 * blocks + ends
    assert found["reduce-scatter of 2"] == blocks + ends
    assert found["all-gather of 4"] == 4 * (8 // 2) * 32  # the segments of whole rows, once for all layers
    assert found["all-reduce of 4"] <= (blocks + ends) // 2 + vectors + SCALARS


@pytest.mark.parametrize(("stage", "scattered"), [(1, 1), (2, 3), (3, 3)])
def test_microbatches_sum_between_replicas_once_and_scatter_once_where_gradients_are_kept_whole(stage, scattered):
    blocks, ends, vectors = sizes_of(MODEL)
    found = step_bytes({"data": 2, "fsdp": 4}, stage, parts=3)
    assert found["reduce-scatter of 4"] == scattered * (blocks + ends)
    assert found["all-reduce of 2"] == (blocks + ends) // 4
    assert found["all-reduce of 8"] <= 3 * (vectors + SCALARS)


def test_microbatches_of_whole_gradients_are_summed_once():
    blocks, ends, vectors = sizes_of(MODEL)
    found = step_bytes({"data": 2, "fsdp": 4}, stage=0, parts=3)
    assert found.keys() == {"all-reduce of 8"}
    assert blocks + ends + 3 * vectors <= found["all-reduce of 8"] <= blocks + ends + 3 * (vectors + SCALARS)


def test_each_policy_of_rematerialisation_holds_less_than_the_one_before():
    mesh, deep = make_mesh(MeshConfig(), jax.devices()[:1]), dataclasses.replace(MODEL, layers=16, ffn=96)
    held = []
    for remat in ("none", "dots", "attention", "full"):
        config = dataclasses.replace(CONFIG, model=deep, train=dataclasses.replace(CONFIG.train, remat=remat))
        held.append(compiled(config, mesh).memory_analysis().temp_size_in_bytes)
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == len(held)


def test_one_device_sends_nothing():
    assert step(CONFIG, make_mesh(MeshConfig(), jax.devices()[:1])) == []


def only(line: str, domains=(), torus=None) -> list[Collective]:
    body = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} {line}\n}}\n"
    return collectives(f"HloModule m, num_partitions=8\n\n{body}", domains, torus)


@pytest.mark.parametrize(
    ("groups", "devices", "domains"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4, 1),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2, 2),
        ("replica_groups=[2,4]<=[8]", 4, 1),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4, 1),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8, 2),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", 4, 1),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", 2, 2),
    ],
)
def test_the_link_follows_from_the_groups_however_they_are_written(groups, devices, domains):
    found = only(f"all-reduce(%p), {groups}", [0, 0, 0, 0, 1, 1, 1, 1])
    assert found == [Collective("all-reduce", 32, devices, 1, "", domains)]


def test_pairs_that_cross_a_boundary_cross_the_slow_link():
    inside, across = "source_target_pairs={{0,1},{1,0}}", "source_target_pairs={{0,1},{1,2}}"
    assert [c.domains for c in only(f"collective-permute(%p), {inside}", [0, 0, 1])] == [1]
    (found,) = only(f"collective-permute(%p), {across}", [0, 0, 1])
    assert (found.fast_traffic, found.slow_traffic) == (0.0, 32.0)


def test_the_links_are_those_of_the_largest_groups():
    torus = Torus([(0, i) for i in range(4)] + [(1, i) for i in range(4)], (2, 4), ring=4)
    for groups, links in (("[2,4]<=[8]", 2), ("[4,2]<=[2,4]T(1,0)", 1), ("[1,8]<=[8]", 3)):
        (found,) = only(f"all-reduce(%p), replica_groups={groups}", torus=torus)
        assert found.links == links
    (ring,) = only("collective-permute(%p), source_target_pairs={{4,7},{7,6},{6,5},{5,4}}", torus=torus)
    (diagonal,) = only("collective-permute(%p), source_target_pairs={{0,5},{5,0}}", torus=torus)
    assert ring.links == diagonal.links == 1


def test_unknown_groups_are_refused():
    with pytest.raises(UserError, match="unknown groups of devices"):
        only("all-reduce(%p), replica_groups=later")


@pytest.mark.parametrize(("groups", "devices"), [("{}", 8), ("{{0},{1,2,3}}", 3), ("{{0,1,2},{3},{4,5}}", 3)])
def test_groups_of_all_devices_and_uneven_ones_count_as_the_largest(groups, devices):
    found = only(f"all-reduce(%p), replica_groups={groups}", [0, 0, 0, 0, 1, 1, 1, 1])
    assert found == [Collective("all-reduce", 32, devices, 1, "", 2 if devices == 8 else 1)]


def test_broadcasts_and_ragged_exchanges_are_counted_and_new_kinds_refused():
    (sent,) = only("collective-broadcast(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}", [0] * 4 + [1] * 4)
    assert (sent.fast_traffic, sent.slow_traffic) == (32.0, 8.0)
    (ragged,) = only("ragged-all-to-all(%p, %p, %p, %p, %p, %p), channel_id=1, replica_groups=[2,4]<=[8]")
    assert ragged.traffic == 32 * 3 / 4
    (pair,) = only("send(%p, %q), channel_id=1, frontend_attributes={_xla_send_recv_source_target_pairs={{0,1}}}")
    assert (pair.kind, pair.traffic) == ("collective-permute", 32.0)
    with pytest.raises(UserError, match="an unknown collective: %x = collective-swap"):
        only("collective-swap(%p), replica_groups={{0,1}}")


def test_types_of_numbers_that_are_new_are_counted():
    line = "%x = f8e4m3fn[16]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}"
    assert collectives(f"ENTRY %main (p: f8e4m3fn[8]) -> f8e4m3fn[16] {{\n  {line}\n}}\n")[0].bytes == 16


def test_a_sum_over_slices_of_several_devices_sends_its_part_over_the_slow_link():
    one = Collective("all-reduce", bytes=800, devices=8, count=1, source="", domains=2)
    assert one.fast_traffic == 2 * 800 * 3 / 4
    assert one.slow_traffic == 2 * (800 / 4) / 2
    assert Collective("all-reduce", 800, 8, 1, "").slow_traffic == 0


def test_a_start_counts_its_results_and_not_its_operands():
    nested = "%x = ((f32[8]{0}, f32[4]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%p, %q), replica_groups={{0,1}}"
    summed = "%x = ((f32[8]{0}), f32[8]{0}) all-reduce-start(%p), replica_groups={{0,1}}"
    plain = "%x = f32[8]{0} all-reduce-start(%p), replica_groups={{0,1}}"
    for line, size in ((nested, 96), (summed, 32), (plain, 32)):
        assert [c.bytes for c in collectives(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}\n")] == [size]


def test_a_gather_that_runs_beside_products_counts_once():
    assert collectives(ASYNC_GATHER) == [Collective("all-gather", 1024 * 8 * 2, 16, 1, "")]


def test_two_slices_scatter_within_and_sum_across():
    within = Collective("reduce-scatter", 8 * 64 * 8 * 4, 8, 3, "")
    across = Collective("all-reduce", 64 * 8 * 4, 2, 3, "", 2)
    for domains in ([0] * 8 + [1] * 8, [0, 1] * 8):  # the program is that of one slice, in whatever order the mesh is
        assert collectives(TWO_SLICES, domains) == [within, within, across]
    assert across.fast_traffic == 0
    assert across.slow_traffic == 3 * 64 * 8 * 4


def test_a_gather_over_slices_counts_the_whole_of_which_each_device_sends_its_part():
    (found,) = collectives(GATHER_OVER_SLICES, [0] * 8 + [1] * 8)
    assert found == Collective("all-gather", 2 * 32 * 4 * 64 * 4, 2, 1, "", 2)
    assert found.slow_traffic == 32 * 4 * 64 * 4


def test_what_one_slice_sends_to_another_is_a_permutation_and_an_unknown_transfer_is_refused():
    single = GATHER_OVER_SLICES.replace("ALL_GATHER", "ONE_TO_ONE").replace("{1,2}x{0:7}", "1->2")
    assert collectives(single) == [Collective("collective-permute", 32 * 4 * 64 * 4, 2, 1, "", 2)]
    with pytest.raises(UserError, match=r"an unknown collective: %send\.50 = send"):
        collectives(GATHER_OVER_SLICES.replace("ALL_GATHER", "SOME_TO_SOME"))


def test_a_reduce_scatter_that_tpu_writes_as_a_sum_and_a_slice_is_one():
    assert collectives(SCATTER_ON_TPU) == [Collective("reduce-scatter", 4160 * 4096 * 4, 4, 1, "")]
