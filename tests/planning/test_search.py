"""What a search tries, drops, compiles and how it ranks, with a compiler that only notes what it is asked."""

import dataclasses
import re

import pytest

from jaxllm.common.console import plain_console
from jaxllm.config import DataConfig, MeshConfig, RunConfig, TrainConfig, TransformerConfig, TuningConfig, UserError
from jaxllm.models.presets import LLAMA2_7B, LLAMA3_8B
from jaxllm.planning.cheap import guess, saved_per_token, tokens_at_once
from jaxllm.planning.search import candidates, search, show_ranking
from jaxllm.planning.topology import target
from jaxllm.validation import problems

V5E = target("v5e:4x4")
LARGE = RunConfig(
    name="large",
    model=LLAMA2_7B,
    data=DataConfig(sequence_length=4096),
    train=TrainConfig(steps=5000, batch_size=64, loss_chunk=4096),
    mesh=MeshConfig(data=1, fsdp=-1),
)
TINY = RunConfig(model=TransformerConfig(max_positions=512), train=TrainConfig(steps=500, batch_size=16))


def cut(config, **sizes):
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))


def trained(config, **fields):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def fake(seconds):
    """A compiler and a description: `seconds(config)` is the slow end, or none where it does not fit."""
    asked = []

    def compile(config, machine):
        asked.append(config)
        return config

    def describe(config, machine):
        time, mesh, train = seconds(config), config.mesh, config.train
        run = {"mesh": {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}, "remat": train.remat}
        run |= {"zero_stage": mesh.zero_stage, "batch_size": train.batch_size, "accumulate": train.accumulate}
        if time is None:
            return {"run": run, "fits": False, "memory": {"needed": 2**34}}
        pair = [1.0, 2.0]
        prediction = {"seconds": [time / 2, time], "tokens_per_second_chip": pair, "mfu": pair, "bound": "compute"}
        return {"run": run, "fits": True, "memory": {"peak": 2**30}, "prediction": prediction}

    return asked, {"compile": compile, "describe": describe}


def test_every_candidate_holds_together_and_keeps_the_batch():
    found = list(candidates(TINY, V5E))
    assert all(not problems(c, V5E.devices) for c in found)
    assert {c.train.batch_size for c in found} == {16}
    assert {c.train.remat for c in found} >= {"none", "dots", "full"}
    assert {c.mesh.tensor for c in found} == {1, 2, 4}  # of 4 heads
    assert {c.mesh.zero_stage for c in found if c.mesh.fsdp > 1} == {0, 1, 2, 3}
    assert all(c.mesh.data * c.mesh.fsdp * c.mesh.tensor == 16 for c in found)
    assert len({(c.mesh, c.train) for c in found}) == len(found)


def test_replicas_and_fsdp_span_slices_and_tensor_stays_within_one():
    found = list(candidates(trained(TINY, batch_size=64), target("2xv5e:4x4")))
    assert {(2, 4), (1, 32), (8, 2)} <= {(c.mesh.data, c.mesh.fsdp) for c in found}
    assert all(16 % (c.mesh.sequence * c.mesh.tensor) == 0 for c in found)


def test_a_model_that_only_all_hosts_together_hold_is_cut_over_them():
    large = dataclasses.replace(LLAMA3_8B, width=8192, layers=80, heads=64, ffn=28672)
    run = dataclasses.replace(trained(LARGE, batch_size=1280, remat="full"), model=large)
    asked, parts = fake(lambda config: 1.0)
    search(run, target("h100:4x8"), 3, **parts)
    assert all(c.mesh.fsdp * c.mesh.tensor == 32 for c in asked)


def test_long_rows_and_rows_that_are_too_few_are_cut_along_sequence():
    assert {c.mesh.sequence for c in candidates(LARGE, V5E)} == {1}
    long = dataclasses.replace(LARGE, data=DataConfig(sequence_length=32_768))
    long = dataclasses.replace(long, model=dataclasses.replace(LLAMA2_7B, max_positions=32_768))
    assert {c.mesh.sequence for c in candidates(long, V5E)} == {1, 2, 4, 8, 16}
    assert {c.mesh.sequence for c in candidates(trained(long, attention="splash"), V5E)} == {1}
    few = trained(LARGE, batch_size=1)
    assert {(c.mesh.sequence, c.mesh.tensor) for c in candidates(few, V5E)} == {(16, 1), (8, 2), (4, 4), (2, 8)}
    short = trained(cut(TINY, sequence=4), batch_size=4)
    assert {c.mesh.sequence for c in candidates(short, V5E)} == {1, 2, 4}  # of 512 tokens


def test_the_recipes_own_sequence_is_tried_filled_in_and_refused_where_no_slice_holds_it():
    assert {c.mesh.sequence for c in candidates(cut(LARGE, sequence=4), V5E)} == {4}
    assert {c.mesh.sequence for c in candidates(cut(LARGE, fsdp=1, sequence=-1), V5E)} == {1, 2, 4, 8, 16}
    for sequence, near in ((32, "16"), (3, "2 or 4")):
        with pytest.raises(UserError, match=rf"mesh.sequence = {sequence} .* the 16 devices .* of 2xv5e:4x4; {near} w"):
            search(cut(LARGE, sequence=sequence), target("2xv5e:4x4"), 3)


def test_a_mesh_is_checked_once_for_all_policies(monkeypatch):
    checked = []
    monkeypatch.setattr("jaxllm.planning.search.problems", lambda config, devices: checked.append(config) or [])
    found = list(candidates(LARGE, V5E))
    assert len(checked) == len({(c.mesh, c.train.accumulate) for c in found})


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_that_cuts_blocks_of_the_base_is_no_candidate_and_others_are(stage):
    tuned = dataclasses.replace(LARGE, base="base", tuning=TuningConfig(method="lora", base_dtype="int8"))
    found = list(candidates(cut(trained(tuned, batch_size=256), zero_stage=stage), target("v5e:16x16")))
    assert {c.mesh.zero_stage for c in found if c.mesh.fsdp == 256} == {0, 1, 2}
    assert {c.mesh.zero_stage for c in found if c.mesh.fsdp == 16} == {0, 1, 2, 3}


def test_variants_of_a_machine_without_figures_are_ranked_by_the_memory_that_the_compiler_tells():
    peaks = iter([3, 1, 2])
    parts = fake(lambda config: 1.0)[1]
    told = parts["describe"]

    def describe(config, machine):
        return {**told(config, machine), "fits": None, "prediction": None, "memory": {"peak": next(peaks)}}

    ranked = search(TINY, target("cpu:8"), 3, compile=parts["compile"], describe=describe)["ranked"]
    assert [plan["memory"]["peak"] for plan in ranked] == [1, 2, 3]


def test_a_search_of_which_nothing_compiles_says_why():
    def compile(config, machine):
        raise UserError("train.attention = 'cudnn': cuDNN runs on GPU, and this is cpu")

    with pytest.raises(
        UserError, match=r"nothing that was tried compiles: data .* UserError: train.attention = 'cudnn'"
    ):
        search(TINY, V5E, 2, compile=compile)


def test_what_cannot_fit_is_not_compiled_and_the_best_of_the_others_are():
    asked, parts = fake(lambda config: 1.0)
    ranking = search(LARGE, V5E, 3, **parts)
    assert len(asked) == len(ranking["ranked"]) == 3
    assert ranking["too_large"] > 0
    assert ranking["tried"] == ranking["too_large"] + ranking["not_compiled"] + 3
    assert all(guess(c, V5E).bytes < 1.3 * 2**34 for c in asked)
    assert [guess(c, V5E).seconds for c in asked] == sorted(guess(c, V5E).seconds for c in asked)
    assert {c.train.compute_dtype for c in asked} == {"bfloat16"}


def test_what_may_just_not_fit_is_tried_after_all_that_should():
    asked, parts = fake(lambda config: 1.0)
    search(LARGE, V5E, 10_000, **parts)
    over = [guess(c, V5E).bytes > 2**34 for c in asked]
    assert any(over)
    assert over == sorted(over)


def test_the_ranking_is_by_predicted_time_with_what_does_not_fit_last():
    times = iter([3.0, None, 1.0, 2.0])
    asked, parts = fake(lambda config: next(times))
    ranked = search(TINY, V5E, 4, **parts)["ranked"]
    assert len(asked) == 4
    assert [r["prediction"]["seconds"][1] if r["fits"] else None for r in ranked] == [1.0, 2.0, 3.0, None]


def test_a_variant_that_fails_is_told_and_loses_no_other(capsys):
    def compile(config, machine):
        if config.train.remat == "full":
            raise TypeError("cannot be traced\nat length")
        return config

    ranking = search(TINY, V5E, 300, compile=compile, describe=fake(lambda config: 1.0)[1]["describe"])
    assert 0 < len(ranking["failed"]) < len(ranking["ranked"])
    assert all("remat full: TypeError: cannot be traced" in line for line in ranking["failed"])
    assert all(plan["run"]["remat"] != "full" for plan in ranking["ranked"])
    show_ranking(ranking, plain_console(width=200))
    assert "failed: data" in capsys.readouterr().out


def test_a_model_that_fits_nowhere_is_told_with_what_it_needs():
    asked, parts = fake(lambda config: 1.0)
    with pytest.raises(
        UserError, match=r"--search: nothing that was tried can fit: the smallest needs about .* of 16.00"
    ):
        search(LARGE, target("v5e:2x2"), 3, **parts)
    assert asked == []


def test_a_batch_that_no_mesh_divides_is_told_with_one_that_would_do():
    with pytest.raises(UserError, match=r"no mesh of 256 devices .* train.batch_size = 7 .* multiple of 256 would do"):
        search(trained(TINY, batch_size=7), target("v5e:16x16"), 3)


def test_the_table_names_mesh_rows_policy_and_what_does_not_fit(capsys):
    times = iter([1.0, None])
    show_ranking(search(TINY, V5E, 2, **fake(lambda config: next(times))[1]), plain_console(width=200))
    out = " ".join(capsys.readouterr().out.split())
    assert "The best for v5e:4x4" in out
    assert "1.00 GiB" in out
    assert "does not fit" in out
    assert "variants" in out


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (cut(LARGE, fsdp=16), cut(LARGE, fsdp=8, data=2)),
        (trained(cut(LARGE, fsdp=16), remat="full"), trained(cut(LARGE, fsdp=16), remat="dots")),
        (trained(cut(LARGE, fsdp=16), remat="dots"), trained(cut(LARGE, fsdp=16), remat="none")),
        (trained(cut(LARGE, fsdp=16), accumulate=4), cut(LARGE, fsdp=16)),
        (cut(LARGE, fsdp=16), cut(LARGE, fsdp=16, zero_stage=2)),
        (cut(LARGE, fsdp=16, zero_stage=2), cut(LARGE, fsdp=16, zero_stage=1)),
        (cut(LARGE, fsdp=16, zero_stage=1), cut(LARGE, fsdp=16, zero_stage=0)),
        (trained(cut(LARGE, fsdp=16), loss_chunk=1024), cut(LARGE, fsdp=16)),
    ],
)
def test_the_guess_at_memory_knows_what_saves_memory(small, large):
    assert guess(small, V5E).bytes < guess(large, V5E).bytes


def test_the_guess_at_time_knows_recomputation_and_slow_networks():
    whole = trained(cut(LARGE, fsdp=16), remat="full")
    assert guess(trained(whole, remat="none"), V5E).seconds < guess(whole, V5E).seconds
    assert guess(whole, V5E).seconds < guess(trained(whole, accumulate=64), V5E).seconds
    two = target("2xv5e:4x4")
    near = cut(trained(LARGE, batch_size=64, accumulate=2), data=2, fsdp=16)
    assert guess(near, two).seconds > guess(near, target("v5e:4x8")).seconds
    assert guess(cut(near, data=1, fsdp=32), two).seconds > guess(near, two).seconds


def test_the_guess_at_time_knows_rings_and_the_links_of_a_group():
    long = dataclasses.replace(LARGE, data=DataConfig(sequence_length=32_768))
    rows, ring = (guess(cut(long, fsdp=16 // n, sequence=n), V5E) for n in (1, 4))
    assert rows.seconds < ring.seconds
    wide = trained(cut(LARGE, fsdp=2, tensor=8), accumulate=32)
    whole = dataclasses.replace(V5E, shape=(1, 16))  # a ring, of which 8 are a part
    assert guess(wide, whole).seconds > guess(wide, V5E).seconds


def test_tokens_and_saved_numbers_of_a_device():
    assert tokens_at_once(trained(cut(LARGE, fsdp=16), accumulate=2)) == 2 * 4096
    assert saved_per_token(LLAMA2_7B, "full") == 4096
    assert saved_per_token(LLAMA2_7B, "dots") == 4096 + 4 * 4096 + 2 * 4096 + 2 * 11008


def test_a_search_tells_what_it_compiles_and_how_long_it_will_take():
    lines = []
    search(TINY, V5E, 3, **fake(lambda config: 1.0)[1], tell=lines.append)
    assert re.match(r"[\d,]+ variants, of which [\d,]+ may fit", lines[0])
    assert re.match(r"compiling 1 of 3: data \d+ x fsdp", lines[1])
    assert re.match(r"compiling 3 of 3, 0:00 left: data \d+ x fsdp", lines[3])
    assert len(lines) == 4
