import os
import re
import subprocess
import sys

import pytest

from jaxllm.common.processes import ALONE, _cluster, _given, joined, waits
from jaxllm.config import UserError

NOTHING = {"processes": None, "process_id": None, "coordinator": None}


def test_a_process_of_which_nothing_is_said_is_alone_and_waits_for_nobody():
    with joined(environment={}) as processes:
        assert (processes.index, processes.count, processes.is_first) == (0, 1, True)
        assert processes.exchange("label", {"a": 1}) == [{"a": 1}]
        assert processes.agree("label", 5) == 5
        assert not processes.called


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},  # an interactive allocation
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JAXLLM_PROCESSES": "1", "SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_one_task_of_a_cluster_is_alone(environment):
    assert not waits(environment=environment)
    with joined(environment=environment) as processes:
        assert processes is ALONE


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "k8s"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
    ],
)
def test_several_tasks_of_a_cluster_are_found(environment, cluster):
    assert _cluster(environment) == cluster
    assert waits(environment=environment)


def test_one_of_several_that_are_told_of_each_other_waits():
    assert waits(2, 0, "a:1", environment={})
    assert waits(process_id=1, environment={"JAXLLM_PROCESSES": "2", "JAXLLM_COORDINATOR": "a:1"})
    assert not waits(1, environment={"OMPI_COMM_WORLD_SIZE": "2"})


def test_options_come_before_variables():
    variables = {"JAXLLM_PROCESSES": "4", "JAXLLM_PROCESS_ID": "3", "JAXLLM_COORDINATOR": "a:1"}
    assert _given(dict(NOTHING), variables) == (3, 4, "a:1")
    assert _given({**NOTHING, "process_id": 1, "coordinator": "b:2"}, variables) == (1, 4, "b:2")
    assert _given(dict(NOTHING), {}) is None
    assert _given({**NOTHING, "processes": 1}, {"JAXLLM_PROCESS_ID": ""}) == (0, 1, "")


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (
            {"processes": 2},
            {},
            "--processes 2 without --process-id and --coordinator: several processes need all",
        ),
        ({"coordinator": "a:1"}, {}, "--coordinator a:1 without --processes and --process-id"),
        ({}, {"JAXLLM_PROCESS_ID": "1"}, "JAXLLM_PROCESS_ID 1 without --processes and --coordinator"),
        ({"processes": 2, "process_id": 2, "coordinator": "a:1"}, {}, "--process-id 2: of 2 processes the first is 0"),
        ({"processes": 2, "process_id": -1, "coordinator": "a:1"}, {}, "--process-id -1: of 2 processes"),
        ({"processes": 0, "process_id": 0, "coordinator": "a:1"}, {}, "--processes 0: expected 1 or more"),
        ({"processes": 2, "process_id": 0, "coordinator": "a"}, {}, "--coordinator a: expected HOST:PORT"),
        ({"processes": 2, "process_id": 0, "coordinator": "a:70000"}, {}, "--coordinator a:70000: expected HOST:PORT"),
        ({}, {"JAXLLM_PROCESSES": "two"}, "JAXLLM_PROCESSES = 'two': expected a whole number"),
    ],
)
def test_what_does_not_make_sense_together_is_told_at_once(options, variables, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"), joined(**options, environment=variables):
        pass


def test_a_cluster_in_which_the_others_cannot_be_found_is_told_with_the_options_that_would_do():
    with (
        pytest.raises(UserError, match=r"\(found: ompi\), but jax cannot find the others: .*--processes N"),
        joined(environment={"OMPI_COMM_WORLD_SIZE": "2"}),
    ):
        pass


def test_a_folder_is_seen_first_by_a_process_that_is_alone(tmp_path):
    assert ALONE.first_that_sees(tmp_path) == 0


JOINS = """
from jaxllm.common.processes import joined
with joined() as processes:
    import jax
    print(processes.index, processes.count, processes.exchange("label", processes.index), jax.device_count())
"""


def slurm(index):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return {**job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


def open_mpi(index):
    uri = {"OMPI_MCA_orte_hnp_uri": f"{(os.getpid() + 1) << 12}.0;tcp://127.0.0.1:1"}
    number = {"OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index)}
    return {**uri, **number, "OMPI_COMM_WORLD_SIZE": "2"}


def started(script, environment):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **flags, **environment},
    )


@pytest.mark.parametrize("started_by", [slurm, open_mpi])
def test_tasks_of_a_cluster_join_as_its_environment_says(started_by):
    for index, member in enumerate([started(JOINS, started_by(index)) for index in range(2)]):
        out, err = member.communicate(timeout=120)
        assert (member.returncode, out) == (0, f"{index} 2 [0, 1] 2\n"), err


def test_a_task_of_a_cluster_that_does_not_come_is_named():
    impatient = f"from jaxllm.common import hub\nhub.PATIENCE = 2.0\n{JOINS}"
    _, err = started(impatient, {**slurm(0), "SLURM_JOB_ID": str(os.getpid() + 1)}).communicate(timeout=120)
    assert "UserError: process 1 of 2 did not come in 2 s: start all of them" in err
