import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxllm.config import UserError
from jaxllm.data.cache import MANIFEST, build_once, cache_root, key_of


def fill(folder: Path) -> dict:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.bin").write_bytes(b"abc")
    (folder / "b.bin").write_bytes(b"")
    return {"made": True}


def refuse(folder: Path) -> dict:
    raise AssertionError("built again")


def script(body: str, folder: Path, **options) -> subprocess.Popen:
    """Another process that builds `folder` with the given body of `fill`."""
    code = "import sys, time\nfrom pathlib import Path\nfrom jaxllm.data.cache import build_once\n"
    code += f"target = Path({str(folder)!r})\ndef fill(folder):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    code += "\nprint(build_once(target, fill))\n"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(condition) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def left(folder: Path) -> list[str]:
    """What is beside the finished folders, other than their locks."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock")]


def test_a_folder_is_built_once_and_what_its_builder_said_is_kept(tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    assert build_once(folder, fill) == {"made": True}
    assert build_once(folder, refuse) == {"made": True}
    assert (folder / "deep" / "a.bin").read_bytes() == b"abc"
    assert left(folder.parent) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path, error):
    def fail(folder):
        fill(folder)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        build_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    assert left(tmp_path) == []
    assert build_once(tmp_path / "x", fill) == {"made": True}


def test_a_build_that_is_killed_is_not_taken_for_a_finished_one(tmp_path):
    folder = tmp_path / "x"
    process = script("(folder / 'half').write_text('half')\ntime.sleep(600)", folder)
    wait_for(lambda: list(tmp_path.glob(".x.*.building/half")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not folder.exists()
    assert len(left(tmp_path)) == 1
    assert build_once(folder, fill) == {"made": True}
    assert left(tmp_path) == []  # what the killed build left is gone too


def test_what_killed_builds_left_is_swept_whatever_they_built_when_it_is_a_day_old(tmp_path):
    for name in ("killed", "alive"):
        (tmp_path / f".{name}.0123.building").mkdir()
        (tmp_path / f".{name}.0123.building" / "half").touch()
    old = time.time() - 25 * 3600
    for path in (tmp_path / ".killed.0123.building" / "half", *tmp_path.glob(".*.building")):
        os.utime(path, (old, old))
    build_once(tmp_path / "x", fill)
    assert left(tmp_path) == [".alive.0123.building"]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    body = f"""
        with open({str(tmp_path / "built")!r}, "a") as file:
            file.write("x")
        time.sleep(0.5)
        (folder / "a").write_text("whole")
        return {{"made": True}}
    """
    processes = [script(body, tmp_path / "cache" / "x") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (out, err, process.returncode) == ("{'made': True}\n", "", 0)
    assert (tmp_path / "built").read_text() == "x"


def test_without_locks_the_faster_of_two_builds_is_kept(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks on this file system")

    def slow(folder):
        build_once(tmp_path / "x", fill)  # another finishes meanwhile
        return {"made": False}

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert build_once(tmp_path / "x", slow) == {"made": True}
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda f: (f / "deep/a.bin").write_bytes(b"ab"), r"'deep/a\.bin' has 2 bytes, not 3"),
        (lambda f: (f / "deep/a.bin").write_bytes(b"abd"), r"the content of 'deep/a\.bin' has changed"),
        (lambda f: (f / "b.bin").unlink(), r"cannot read 'b\.bin': No such file"),
        (lambda f: (f / MANIFEST).unlink(), r"cannot read 'manifest\.json': No such file"),
        (lambda f: (f / MANIFEST).write_text('{"files": {'), r"'manifest\.json' cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[]"), r"'manifest\.json' cannot be read"),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff"), r"'manifest\.json' cannot be read"),
    ],
)
def test_damage_is_found_named_and_mended_by_deleting_the_folder(tmp_path, harm, complaint):
    folder = tmp_path / "x"
    build_once(folder, fill)
    harm(folder)
    with pytest.raises(UserError, match=rf"the data cache '{folder}' is damaged: {complaint}.*; delete that folder"):
        build_once(folder, refuse)


def test_a_full_disk_is_reported_and_nothing_half_written_stays(tmp_path):
    body = """
        (folder / "small").write_bytes(b"x")
        (folder / "large").write_bytes(b"x" * (1 << 20))
        return {}
    """

    def limit():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    _, err = script(body, tmp_path / "x", preexec_fn=limit).communicate(timeout=60)
    assert f"UserError: cannot write the data cache '{tmp_path}': File too large; make room there, or choose" in err
    assert not (tmp_path / "x").exists()
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserError, match=r"cannot write the data cache '.*/file/cache': Not a directory; .*--data.cache-dir"
    ):
        build_once(tmp_path / "file" / "cache" / "x", refuse)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_reported_but_what_is_there_is_used(tmp_path):
    build_once(tmp_path / "x", fill)
    tmp_path.chmod(0o500)
    try:
        assert build_once(tmp_path / "x", refuse) == {"made": True}
        with pytest.raises(UserError, match="Permission denied"):
            build_once(tmp_path / "y", fill)
    finally:
        tmp_path.chmod(0o700)


def test_the_root_is_the_configured_folder_or_the_variable_or_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path))
    assert cache_root(None) == tmp_path / "data"
    assert cache_root("~/elsewhere") == Path.home() / "elsewhere"
    monkeypatch.delenv("JAXLLM_CACHE")
    assert cache_root(None) == Path.home() / ".cache/jaxllm/data"


def test_keys_follow_every_part_but_not_the_order_of_a_dictionary(monkeypatch):
    keys = [key_of(["a", 1]), key_of(["a", 2]), key_of([1, "a"]), key_of([["a"], 1])]
    assert len(set(keys)) == 4
    assert key_of({"a": 1, "b": 2}) == key_of(json.loads('{"b": 2, "a": 1}'))
    monkeypatch.setattr("jaxllm.data.cache.FORMAT", 0)
    assert key_of(["a", 1]) != keys[0]
