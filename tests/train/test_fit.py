from dataclasses import replace

import pytest

from jaxllm.config import MeshConfig, RunConfig, UserError
from jaxllm.models.summary import memory
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train import fit

RUN = RunConfig()
STATE = memory(RUN.model, RUN.optimizer).total


def check(config: RunConfig = RUN, **mesh: int) -> None:
    fit.check_fits(config, make_mesh(MeshConfig(**mesh)))


def test_a_model_larger_than_the_machine_is_told_with_both_sizes():
    large = replace(RUN, model=replace(RUN.model, positions="learned", max_positions=2 * 10**9))
    with pytest.raises(UserError, match=r"need 61,\d+\.\d GiB and this machine has \d+\.\d GiB; .* mesh\.fsdp"):
        check(large, data=8)


def test_replicas_count_each_and_shards_once(monkeypatch):
    monkeypatch.setattr(fit, "_machine_memory", lambda: 3 * STATE)
    check(data=1, fsdp=8)
    check(data=2, tensor=4)
    with pytest.raises(UserError, match="does not fit"):
        check(data=8)


def test_the_average_counts(monkeypatch):
    monkeypatch.setattr(fit, "_machine_memory", lambda: STATE)
    check(fsdp=8, data=1)
    with pytest.raises(UserError, match=r"does not fit.* counts its parts\)$"):
        check(replace(RUN, train=replace(RUN.train, ema_decay=0.99)), fsdp=8, data=1)
