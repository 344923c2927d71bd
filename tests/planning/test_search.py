"""What a search tries, drops, compiles and how it ranks, with a compiler that only notes what it is asked."""

import dataclasses

import pytest
from rich.console import Console

from jaxllm.config import DataConfig, MeshConfig, RunConfig, TrainConfig, TransformerConfig, UserError
from jaxllm.models.presets import LLAMA2_7B
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


def test_slices_hold_whole_tensor_and_fsdp_groups():
    found = list(candidates(trained(TINY, batch_size=64), target("2xv5e:4x4")))
    assert found
    assert all(c.mesh.data % 2 == 0 for c in found)


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
    show_ranking(ranking, Console(width=200))
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
    show_ranking(search(TINY, V5E, 2, **fake(lambda config: next(times))[1]), Console(width=200))
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
    near = cut(trained(LARGE, batch_size=32), data=2, fsdp=16)
    assert guess(near, two).seconds > guess(near, target("v5e:4x8")).seconds


def test_tokens_and_saved_numbers_of_a_device():
    assert tokens_at_once(trained(cut(LARGE, fsdp=16), accumulate=2)) == 2 * 4096
    assert saved_per_token(LLAMA2_7B, "full") == 4096
    assert saved_per_token(LLAMA2_7B, "dots") == 4096 + 4 * 4096 + 2 * 4096 + 2 * 11008
