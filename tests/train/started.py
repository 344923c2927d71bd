"""Real processes that train together, for tests to start and to look at."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.config import RunConfig, to_dict


@dataclass(frozen=True)
class Ended:
    """What is left of a process that trained."""

    status: int
    out: str
    err: str
    rows: dict[int, dict[int, str]]
    """A hash of each row that it made, by batch and by place in it."""
    prepared: int
    """How often it read the sources."""


class Started:
    """Processes that train together, each of them `tests/train/member.py`."""

    def __init__(self, config: RunConfig, root: Path, processes: int, devices: int, **more: Any):
        root.mkdir()
        (root / "config.json").write_text(json.dumps(to_dict(config)))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
        flags = {"XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()}
        flags["JAXLLM_CACHE"] = str(Path(config.data.cache_dir or "").with_name("programs"))
        self.root, self.all = root, []
        for i in range(processes):
            variables = {
                "JAXLLM_PROCESSES": str(processes),
                "JAXLLM_PROCESS_ID": str(i),
                "JAXLLM_COORDINATOR": f"127.0.0.1:{port}",
            }
            command = [sys.executable, "tests/train/member.py", str(root), str(i), json.dumps(more)]
            with open(root / f"{i}.out", "w") as out, open(root / f"{i}.err", "w") as err:
                environment = {**os.environ, **flags, **(variables if processes > 1 else {})}
                self.all.append(subprocess.Popen(command, stdout=out, stderr=err, env=environment))

    def wait_for(self, text: str) -> None:
        """Returns when process 0 has printed it."""
        while text not in (self.root / "0.out").read_text():
            assert self.all[0].poll() is None, (self.root / "0.err").read_text()
            time.sleep(0.05)

    def ended(self, seconds: float = 300) -> list[Ended]:
        """How each ended; it is a failure if one does not in that time."""
        until, found = time.monotonic() + seconds, []
        try:
            for i, process in enumerate(self.all):
                status = process.wait(max(0.1, until - time.monotonic()))
                out, err, log = ((self.root / f"{i}.{kind}").read_text() for kind in ("out", "err", "rows"))
                lines = [json.loads(line) for line in log.splitlines()]
                rows: dict[int, dict[int, str]] = {}
                for line in lines:
                    if "batch" in line:
                        rows.setdefault(line["batch"], {}).update({int(b): h for b, h in line["rows"].items()})
                found.append(Ended(status, out, err, rows, sum("prepared" in line for line in lines)))
        finally:
            for process in self.all:
                process.kill()
                process.wait()
        return found
