"""Members of a hub in processes of their own, without a device."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxllm.common import hub

PROGRAM = """
import sys, time
from jaxllm.common import hub
from jaxllm.config import UserError
hub.PATIENCE = 5
port, index, count, act = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    if index == 0:
        hub.Hub(count, port, {"word": "go"})
    member = hub.Member([("127.0.0.1", port)], index, count)
except UserError as error:
    print(f"error: {error}")
    sys.exit(2)
print(member.start["word"], *member.exchange("numbers", index * 10), *member.exchange("numbers", index), flush=True)
exec(act)
"""


LEAVE = "member.exchange('end', 0); member.ending(); time.sleep(1); member.close()"
"""The pause stands for jax's own end, at which each process waits for the others."""


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def start(port):
    """`start(index, count, act)`: a member that does `act` when all are there."""
    started = []

    def one(index, count, act="member.close()"):
        command = [sys.executable, "-c", PROGRAM, str(port), str(index), str(count), act]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, **pipes))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_members_get_each_others_values_in_their_order(start):
    members = [start(index, 3, LEAVE) for index in (2, 0, 1)]
    assert [end(member) for member in members] == [(0, "go 0 10 20 0 1 2\n", "")] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_member_that_is_killed_ends_the_others_with_its_name(start, victim):
    members = [start(index, 3, "time.sleep(60)") for index in range(3)]
    for member in members:
        assert member.stdout.readline() == "go 0 10 20 0 1 2\n"
    members[victim].send_signal(signal.SIGKILL)
    for member in members[:victim] + members[victim + 1 :]:
        status, _, err = end(member)
        assert status == hub.LOST == 3
        assert err.startswith(f"error: process {victim} ({socket.gethostname()}) has died, or its host has not")


@pytest.mark.parametrize("fails", [0, 1])
def test_a_member_that_fails_says_why_to_the_others(start, fails):
    act = f"member.fail('no room') if index == {fails} else member.exchange('never', 0)"
    members = [start(index, 2, act) for index in range(2)]
    assert end(members[fails])[0] == 0
    status, _, err = end(members[1 - fails])
    assert status == 3
    assert err.startswith(f"error: process {fails} ({socket.gethostname()}) failed: no room\n")


def test_members_that_all_fail_end_by_their_own_errors(start):
    members = [start(index, 2, "member.fail('not finite'); sys.exit(2)") for index in range(2)]
    assert [end(member)[0] for member in members] == [2, 2]


def test_a_call_reaches_all(start):
    act = "member.call() if index == 1 else 0\nwhile not member.called: time.sleep(0.01)\n"
    members = [start(index, 2, act + LEAVE) for index in range(2)]
    assert [end(member)[0] for member in members] == [0, 0]


def test_members_that_do_not_come_are_named_to_those_that_did(start):
    members = [start(index, 4) for index in (0, 2)]
    for member in members:
        status, out, _ = end(member)
        assert status == 2
        assert out.startswith("error: processes 1, 3 of 4 did not come in 5 s: start all of them")


def test_a_hub_that_cannot_be_reached_is_named(start, port):
    status, out, _ = end(start(1, 2))
    assert status == 2
    assert out.startswith(f"error: process 0 cannot be reached at 127.0.0.1:{port} in 5 s (Connection refused): ")


def test_a_number_that_another_contradicts_ends_both(start):
    for member in [start(0, 2), start(1, 3)]:
        status, out, _ = end(member)
        assert status == 2
        assert "process 1 (" in out
        assert ") was told of 3 processes, and process 0 of 2; give all of them the same number" in out


def test_a_number_that_a_run_does_not_have_ends_both(start):
    for member in [start(0, 2), start(7, 2)]:
        status, out, _ = end(member)
        assert status == 2
        assert f"{socket.gethostname()} was told to be process 7: of 2 processes the first is 0 and the last 1" in out


def test_two_of_one_number_end_all(start):
    ended = [end(member) for member in [start(0, 3), start(1, 3), start(1, 3)]]
    assert {status for status, _, _ in ended} == {2}
    assert all("were told to be process 1" in out for _, out, _ in ended)


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("", port)), pytest.raises(hub.UserError, match=f"cannot listen on port {port}: Address"):
        hub.Hub(2, port, {})


def test_a_stranger_on_the_port_is_ignored(start, port):
    members = [start(0, 2)]
    claims = [json.dumps({"index": index, "count": 2}).encode() + b"\n" for index in ("x", True)]
    for words in (b"GET / HTTP/1.1\r\n\r\n", *claims, b"[]\n"):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                    stranger.sendall(words)
                    assert stranger.recv(1) == b""
                break
            except ConnectionRefusedError:
                pass
    members.append(start(1, 2, "member.exchange('end', 0)"))
    assert members[1].stdout.readline() == "go 0 10 0 1\n"


def test_a_connection_notices_a_host_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        hub.Wire(connection)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert idle + interval * count <= hub.SILENCE
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * hub.SILENCE
