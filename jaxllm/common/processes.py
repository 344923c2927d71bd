"""The processes that train one run together: how they find each other, agree and end.

jax.distributed joins their devices. Beside it a hub (`common/hub.py`) joins the processes: what is decided on the host
is agreed there, without a device and from any thread, and a process that dies is named by it.
"""

import contextlib
import importlib.util
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.common import hub
from jaxllm.common.hub import Hub, Member
from jaxllm.config import UserError

VARIABLES = {"processes": "JAXLLM_PROCESSES", "process_id": "JAXLLM_PROCESS_ID", "coordinator": "JAXLLM_COORDINATOR"}
"""What may be given by the environment in place of an option."""

HEARTBEAT = 100
"""Seconds after which jax itself ends the others of a process that is silent; the hub is earlier."""


class Processes:
    """The processes of a run as one of them sees them; without a member it is the only one."""

    def __init__(self, index: int = 0, count: int = 1, member: Member | None = None):
        self.index, self.count, self._member = index, count, member

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.index == 0

    @property
    def called(self) -> bool:
        """Whether a process has called all."""
        return self._member is not None and self._member.called

    def call(self) -> None:
        """Sets `called` in every process, soon."""
        if self._member is not None:
            self._member.call()

    def exchange(self, label: str, value: Any) -> list[Any]:
        """What each process gives, anything that JSON can write, in their order.

        Waits for all of them, for as long as they live. Threads may exchange at the same time under labels of their
        own.
        """
        return [value] if self._member is None else self._member.exchange(label, value)

    def agree(self, label: str, value: Any) -> Any:
        """What process 0 gives."""
        return self.exchange(label, value)[0]

    def fail(self, error: BaseException) -> None:
        """Ends all other processes with this one's error."""
        if self._member is not None:
            self._member.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")

    def end(self, error: UserError) -> None:
        """Ends all processes with this one's error, and this one too, from whatever thread.

        Its main thread may wait for the others in a collective, where no exception reaches it.
        """
        self.fail(error)
        os.write(sys.stderr.fileno(), f"error: {error}\n".encode())
        os._exit(2)

    def name(self, index: int) -> str:
        """`process 2 (node-7)`."""
        host = socket.gethostname() if self._member is None else self._member.start["hosts"][index]
        return f"process {index} ({host})"

    def first_that_sees(self, folder: Path) -> int:
        """The lowest process that sees this folder as this process does: 0 where they share the file system.

        That of the process itself where there is no such folder.

        Raises:
            OSError: it cannot be written.
        """
        if self.count == 1:
            return 0
        token = self.agree("token", secrets.token_hex(8))

        def mark(index: int) -> Path:
            return folder / f".process-{index}-{token}"

        with contextlib.suppress(FileNotFoundError):
            mark(self.index).touch()
        self.exchange("marked", None)
        first = next((index for index in range(self.count) if mark(index).exists()), self.index)
        self.exchange("seen", None)
        mark(self.index).unlink(missing_ok=True)
        return first


ALONE = Processes()
"""A run of one process."""


@contextlib.contextmanager
def joined(
    processes: int | None = None,
    process_id: int | None = None,
    coordinator: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Processes]:
    """Joins this process with the others of its run, and leaves them at the end; an error in one ends all.

    The three arguments, or their variables, say how; without them the environment does where Slurm, Open MPI, an
    indexed Kubernetes job or the metadata of a TPU pod started several processes. Otherwise, and with `processes` 1,
    the process is alone and waits for nobody. jax must not have touched a device yet.

    Args:
        processes: how many there are.
        process_id: which one this is, from 0.
        coordinator: `HOST:PORT`, the host of process 0 and a port that is free there.
        environment: read in place of the process's own.

    Raises:
        UserError: arguments that do not make sense together, or contradict those of another process, or a process
            that does not come.
    """
    given = _given({"processes": processes, "process_id": process_id, "coordinator": coordinator}, environment)
    if given is not None:
        run = _join_as_told(*given) if given[1] > 1 else ALONE
    elif cluster := _cluster(environment):
        run = _join_as_found(cluster)
    else:
        run = ALONE
    try:
        yield run
    except UserError as error:
        run.fail(error)
        raise
    except BaseException as error:
        if run.count > 1:
            # Most likely what a collective says when another process has died: then the hub names it and ends this one.
            time.sleep(2 * hub.GRACE)
        run.fail(error)
        raise
    if run._member is not None:
        run.exchange("end", None)
        run._member.ending()
        _jax().distributed.shutdown()
        run._member.close()


def waits(
    processes: int | None = None,
    process_id: int | None = None,
    coordinator: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Whether `joined` would look for other processes, by the same arguments.

    Raises:
        UserError: arguments that do not make sense together.
    """
    given = _given({"processes": processes, "process_id": process_id, "coordinator": coordinator}, environment)
    return _cluster(environment) is not None if given is None else given[1] > 1


def _jax() -> Any:
    import jax  # takes a second, which `jaxllm --help` need not wait for

    return jax


Told = tuple[int, int, str]
"""This process, all processes, and the hub's address."""


def _given(options: dict[str, Any], environment: Mapping[str, str]) -> Told | None:
    """What the options, or else the variables, say; none where they say nothing."""
    names = {field: f"--{field.replace('_', '-')}" for field in options}
    for field, variable in VARIABLES.items():
        if options[field] is None and environment.get(variable):
            options[field], names[field] = environment[variable], variable
    for field in ("processes", "process_id"):
        if isinstance(options[field], str):
            if not options[field].isdecimal():
                raise UserError(f"{names[field]} = {options[field]!r}: expected a whole number")
            options[field] = int(options[field])
    count, index, address = options.values()
    if count is None and index is None and address is None:
        return None
    if count == 1 and index in (None, 0):
        return 0, 1, ""
    if missing := [names[field] for field, value in options.items() if value is None]:
        have = [f"{names[field]} {value}" for field, value in options.items() if value is not None]
        raise UserError(
            f"{' and '.join(have)} without {' and '.join(missing)}: several processes need all three of "
            "--processes N --process-id I --coordinator HOST:PORT, or their variables "
            f"{', '.join(VARIABLES.values())}"
        )
    if count < 1:
        raise UserError(f"{names['processes']} {count}: expected 1 or more")
    if not 0 <= index < count:
        raise UserError(f"{names['process_id']} {index}: of {count} processes the first is 0 and the last {count - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{names['coordinator']} {address}: expected HOST:PORT, such as 10.0.0.1:1234")
    return index, count, address


def _join_as_told(index: int, count: int, address: str, local_devices: Sequence[int] | None = None) -> Processes:
    host, _, port = address.rpartition(":")
    if index == 0:
        with socket.create_server(("", 0)) as free:
            devices = free.getsockname()[1]
        Hub(count, int(port), {"devices": devices})
    member = Member([(host.strip("[]"), int(port))], index, count)
    # All are there now: jax, which aborts the process where one is missing, has nothing to wait for.
    jax = _jax()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    jax.distributed.initialize(
        coordinator_address=f"{host}:{member.start['devices']}",
        num_processes=count,
        process_id=index,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(hub.PATIENCE),
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=hub.SILENCE,
    )
    if jax.default_backend() == "cpu":
        _hush_gloo()
    return Processes(index, count, member)


def _hush_gloo() -> None:
    """Leaves the standard output to Python: gloo prints a line there for each group of devices that it connects."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = open(kept, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115


def _cluster(environment: Mapping[str, str]) -> str | None:
    """The name that jax has for what has started this process beside others; none where it is alone.

    jax alone would take one task of an interactive Slurm allocation for all of its tasks, and wait for the rest.
    """

    def number(name: str) -> int:
        return int(environment[name]) if environment.get(name, "").isdecimal() else 1

    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or number("MEGASCALE_NUM_SLICES") > 1:
        return "gketpu"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    if number("SLURM_STEP_NUM_TASKS") > 1:
        return "slurm"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "k8s"
    if not workers and importlib.util.find_spec("libtpu") is not None:
        _jax()  # says by this variable that the machine has no TPU
        return None if "TPU_SKIP_MDS_QUERY" in environment else "gcetpu"
    return None


def _join_as_found(cluster: str) -> Processes:
    """Joins as jax finds out."""
    # Private, but what jax.distributed.initialize calls itself: it alone would abort where a process does not come.
    from jax._src.clusters import ClusterEnv

    try:
        if cluster == "k8s" and importlib.util.find_spec("kubernetes") is None:
            raise RuntimeError("the package kubernetes is missing (pip install 'jax[k8s]')")
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, cluster, int(hub.PATIENCE)
        )
        if address is None or count is None or index is None:
            raise RuntimeError("its environment does not say where they are")
    except (RuntimeError, ValueError, LookupError, AttributeError, OSError) as error:
        raise UserError(
            f"this process seems to be one of several (found: {cluster}), but jax cannot find the others: {error!r}; "
            "give each of them --processes N --process-id I --coordinator HOST:PORT, or --processes 1 where it is alone"
        ) from error
    return ALONE if count == 1 else _join_as_told(index, count, address, devices)
