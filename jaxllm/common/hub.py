"""Lines of JSON between the processes of a run, by way of the first of them.

Process 0 listens and all connect to it, itself too. A connection lasts as long as its process: the kernel closes it
when the process ends in whatever way, and gives it up when the other host has not answered for half a minute. No
thread must beat for that, so that a process that is only busy is never taken for dead.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from jaxllm import __version__
from jaxllm.config import UserError

LOST = 3
"""The exit status of a process that ends because another one of its run did."""

PATIENCE = 300.0
"""Seconds in which all processes of a run must have come together; hosts of a cloud start minutes apart."""

SILENCE = 30
"""Seconds after which a host that does not answer is given up."""

GRACE = 2.0
"""Seconds in which a process may itself meet the error that another has told of, and then ends by its own."""


class Wire:
    """A connection that carries objects of JSON, one a line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 3)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 6)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)
        self._connection, self._lines, self._lock = connection, connection.makefile("rb"), threading.Lock()

    def wait_at_most(self, seconds: float | None) -> None:
        """How long `__iter__` waits for a line before it takes the connection for ended."""
        self._connection.settimeout(seconds)

    def send(self, **message: Any) -> None:
        """Sends an object; to one who is gone it goes nowhere, which `__iter__` tells."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The objects that come, until the connection ends."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                yield json.loads(line)

    def close(self) -> None:
        """Ends the connection, also for a thread that waits for a line."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Hub:
    """In process 0: gathers the members of a run, and passes on what one of them says to all."""

    def __init__(self, count: int, port: int, start: dict[str, Any]):
        """
        Args:
            count: of the members.
            port: to listen on; 0 for any.
            start: is told to all when all are there.

        Raises:
            UserError: the port is taken.
        """
        self._count, self._start = count, start
        self._lock = threading.RLock()
        self._wires: dict[int, Wire] = {}
        self._hosts: dict[int, str] = {}
        self._values: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        self._began = False
        self._refused: str | None = None
        try:
            if socket.has_dualstack_ipv6():
                self._server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                self._server = socket.create_server(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {port}: {error.strerror}; another one may run on this machine "
                "already: give each its own --process-id, or all of them another port in --coordinator"
            ) from None
        self.port: int = self._server.getsockname()[1]
        for work in (self._accept, self._give_up):
            threading.Thread(target=work, name="hub", daemon=True).start()

    def close(self) -> None:
        """Listens no more."""
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(Wire(connection),), name="hub", daemon=True).start()

    def _give_up(self) -> None:
        time.sleep(PATIENCE)
        with self._lock:
            if not self._began:
                missing = sorted({*range(self._count)} - self._wires.keys())
                which = ("process " if len(missing) == 1 else "processes ") + ", ".join(map(str, missing))
                self._tell(
                    refused=f"{which} of {self._count} did not come in {PATIENCE:.0f} s: start all of them, each "
                    "with its own --process-id and with --coordinator at the host of process 0"
                )

    def _serve(self, wire: Wire) -> None:
        messages = iter(wire)
        join = next(messages, None)
        if not isinstance(join, dict) or not self._admit(wire, join):
            wire.close()
            return
        index = join["index"]
        for message in messages:
            if "value" in message:
                self._collect(index, message["key"], message["value"])
            elif "failed" in message:
                self._lose(index, f"failed: {message['failed']}", failed=True)
                if index == 0:  # with which the hub and jax's own service end
                    self._wait_for_others()
                wire.send(heard=True)
                return
            elif "bye" in message:
                with self._lock:
                    del self._wires[index]
                return
            else:
                self._tell(**message)
        self._lose(index, f"has died, or its host has not answered for {SILENCE} s", failed=False)

    def _admit(self, wire: Wire, join: dict[str, Any]) -> bool:
        index, host = join.get("index"), join.get("host")
        if type(index) is not int:  # not one of ours
            return False
        with self._lock:
            refused = self._refused or self._contradiction(join)
            if refused:
                wire.send(refused=refused)
                if not self._began:
                    self._refused = refused  # for those who come later too
                    self._tell(refused=refused)
                return False
            self._wires[index], self._hosts[index] = wire, str(host)
            if len(self._wires) == self._count:
                self._began = True
                self._tell(start={**self._start, "hosts": [self._hosts[i] for i in range(self._count)]})
        return True

    def _contradiction(self, join: dict[str, Any]) -> str | None:
        """What a process that wants to join was told otherwise than the others, or nothing."""
        index, count, host = join["index"], join.get("count"), join.get("host")
        if count != self._count:
            return (
                f"process {index} ({host}) was told of {count} processes, and process 0 of {self._count}; "
                "give all of them the same number"
            )
        last = self._count - 1
        if not 0 <= index <= last:
            return f"{host} was told to be process {index}: of {count} processes the first is 0 and the last {last}"
        if index in self._wires:
            return f"two processes, on {self._hosts[index]} and on {host}, were told to be process {index}"
        if join.get("version") != __version__:
            return f"process {index} ({host}) has jaxllm {join.get('version')}, and process 0 {__version__}"
        return None

    def _collect(self, index: int, key: str, value: Any) -> None:
        with self._lock:
            self._values[key][index] = value
            if len(self._values[key]) == self._count:
                found = self._values.pop(key)
                self._tell(key=key, values=[found[i] for i in range(self._count)])

    def _lose(self, index: int, how: str, failed: bool) -> None:
        with self._lock:
            del self._wires[index]
            if self._began:  # one who leaves before may come again
                self._tell(lost=f"process {index} ({self._hosts[index]}) {how}", failed=failed)

    def _wait_for_others(self) -> None:
        """Returns when they have ended, or should have."""
        until = time.monotonic() + 3 * GRACE
        while self._wires and time.monotonic() < until:
            time.sleep(0.05)

    def _tell(self, **message: Any) -> None:
        with self._lock:
            for index in sorted(self._wires, reverse=True):  # its own process last, which may end at once
                self._wires[index].send(**message)


class Member:
    """One process's end of the line to the hub."""

    def __init__(self, addresses: Sequence[tuple[str, int]], index: int, count: int):
        """Comes together with all others.

        Args:
            addresses: of the hub, tried in turn.
            index: this process.
            count: of all.

        Raises:
            UserError: process 0 cannot be reached, another process does not come, or they contradict each other.
        """
        self._wire = _connected(addresses)
        self._wire.wait_at_most(PATIENCE + SILENCE)  # whatever listens there may be no hub
        self._closing = threading.Event()
        self._heard = threading.Event()
        self._lock = threading.Lock()
        self._turns: Counter[str] = Counter()
        self._answers: defaultdict[str, queue.Queue[list[Any]]] = defaultdict(queue.Queue)
        self.called = False
        """Whether a process has called all others."""
        self._wire.send(index=index, count=count, host=socket.gethostname(), version=__version__)
        self._messages = iter(self._wire)
        first = next(self._messages, {})
        if "start" not in first:
            raise UserError(first.get("refused", "process 0 ended before all processes had come together"))
        self._wire.wait_at_most(None)
        self.start: dict[str, Any] = first["start"]
        threading.Thread(target=self._listen, name="member", daemon=True).start()

    def exchange(self, label: str, value: Any) -> list[Any]:
        """What every process gave under this label, at this turn of it, in their order; waits for all."""
        with self._lock:
            key = f"{label} {self._turns[label]}"
            self._turns[label] += 1
            answer = self._answers[key]
        self._wire.send(key=key, value=value)
        values = answer.get()
        with self._lock:
            del self._answers[key]
        return values

    def call(self) -> None:
        """Sets `called` everywhere, soon."""
        self._wire.send(called=True)

    def fail(self, text: str) -> None:
        """Tells all that this process ends for an error; process 0 waits until they have ended, or should have."""
        self._closing.set()
        self._wire.send(failed=text)
        self._heard.wait(4 * GRACE)

    def ending(self) -> None:
        """From now on it is no loss when another process ends."""
        self._closing.set()

    def close(self) -> None:
        """Leaves."""
        self._closing.set()
        self._wire.send(bye=True)
        self._wire.close()

    def _listen(self) -> None:
        for message in self._messages:
            if "values" in message:
                with self._lock:
                    answer = self._answers[message["key"]]
                answer.put(message["values"])
            elif "called" in message:
                self.called = True
            elif "heard" in message:
                self._heard.set()
            elif "lost" in message:
                if message["failed"]:
                    self._closing.wait(GRACE)
                self._end(message["lost"])
        self._heard.set()
        self._end(f"process 0 ({self.start['hosts'][0]}) has died, or its host has not answered for {SILENCE} s")

    def _end(self, text: str) -> None:
        """Ends this process at once: its main thread waits for what will not come, where no exception reaches it."""
        if not self._closing.is_set():
            text = f"error: {text}\nthis process ends with it; what was saved is whole: start all processes again\n"
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), text.encode())
            os._exit(LOST)


def _connected(addresses: Sequence[tuple[str, int]]) -> Wire:
    until = time.monotonic() + PATIENCE
    while True:
        for address in addresses:
            try:
                return Wire(socket.create_connection(address, timeout=10))
            except OSError as error:
                reason = error.strerror or str(error)
        if time.monotonic() > until:
            where = " or ".join(f"{host}:{port}" for host, port in addresses)
            raise UserError(
                f"process 0 cannot be reached at {where} in {PATIENCE:.0f} s ({reason}): start it, and give all "
                "processes its host and a port that is open there as --coordinator"
            )
        time.sleep(min(0.5, PATIENCE / 10))
