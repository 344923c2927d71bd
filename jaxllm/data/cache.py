"""Folders that are written once, whole or not at all, and named after what they are made from.

A folder is built under a temporary name and renamed when it is complete, so that its existence means that it
is finished, whatever stopped an earlier build. Its manifest holds the size and hash of every file, which are
checked each time it is opened.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxllm.common.paths import user_path
from jaxllm.config import UserError

FORMAT = 7
"""Part of every key: raise it when the meaning of a cached file changes."""

MANIFEST = "manifest.json"

DAY = 86_400
"""Seconds."""


def cache_root(cache_dir: str | None) -> Path:
    """`cache_dir`, or `data` under $JAXLLM_CACHE, or `~/.cache/jaxllm/data`."""
    if cache_dir is not None:
        return user_path(cache_dir)
    return user_path(os.environ.get("JAXLLM_CACHE", "~/.cache/jaxllm")) / "data"


def key_of(parts: Any) -> str:
    """A name for whatever is made from `parts` (anything that JSON can write)."""
    text = json.dumps({"format": FORMAT, "parts": parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_hashes(paths: Iterable[Path]) -> list[str]:
    """A hash of each file's content; read in parallel, since hashing releases the interpreter's lock."""

    def one(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, paths))


def build_once(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Makes `folder` with `fill(temporary folder)` unless it exists, and returns what `fill` returned then.

    Of several processes that want the same folder, one builds it and the others wait for it.

    Raises:
        UserError: the cache cannot be written (full disk, read-only folder), and nothing of it is left;
            or the folder that exists is damaged.
    """
    if not folder.exists():
        with writing_cache(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder) as alone:
                if not folder.exists():
                    _build(folder, fill, alone)
    return _verified(folder)


@contextlib.contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """What a disk that is full, or a folder that is read-only, says to the user.

    Raises:
        UserError: the block could not read or write a file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the data cache '{folder}': {error.strerror or error}; make room there, "
            "or choose another folder with --data.cache-dir or $JAXLLM_CACHE"
        ) from error


def manifest_info(folder: Path) -> dict[str, Any]:
    """What `build_once` returned for a folder that another process has just built or checked.

    Raises:
        UserError: it is not there.
    """
    try:
        return json.loads((folder / MANIFEST).read_text())["info"]
    except OSError as error:
        raise UserError(f"the data cache '{folder}' cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock; False on a file system without locks, where the final rename alone decides."""
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _build(folder: Path, fill: Callable[[Path], dict[str, Any]], alone: bool) -> None:
    if alone:
        _sweep(folder)
    building = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.building")
    try:
        building.mkdir()
        info = fill(building)
        paths = sorted(p for p in building.rglob("*") if p.is_file())
        files = {
            p.relative_to(building).as_posix(): [p.stat().st_size, digest]
            for p, digest in zip(paths, file_hashes(paths), strict=True)
        }
        (building / MANIFEST).write_text(json.dumps({"files": files, "info": info}, indent=1))
        os.rename(building, folder)
    except OSError as error:
        another_was_faster = error.errno in (errno.EEXIST, errno.ENOTEMPTY) and folder.exists()
        if not another_was_faster:
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Deletes what builds whose processes are gone have left: of `folder`, whose lock is held, and beside it.

    What lies beside it must have been at rest for a day, since locks may not reach to the other hosts of a file system.
    """
    for left in folder.parent.glob(".*.building"):
        with contextlib.suppress(OSError):  # what another process deletes or closes to us
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if left.name.startswith(f".{folder.name}.") or time.time() - newest > DAY:
                shutil.rmtree(left, ignore_errors=True)


def _verified(folder: Path) -> dict[str, Any]:
    def damaged(what: str) -> UserError:
        return UserError(f"the data cache '{folder}' is damaged: {what}; delete that folder and it is built again")

    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, (size, _) in manifest["files"].items():
            if (found := (folder / name).stat().st_size) != size:
                raise damaged(f"'{name}' has {found} bytes, not {size}")
        hashes = file_hashes(folder / name for name in manifest["files"])
        for (name, (_, wanted)), digest in zip(manifest["files"].items(), hashes, strict=True):
            if digest != wanted:
                raise damaged(f"the content of '{name}' has changed")
    except OSError as error:
        raise damaged(f"cannot read '{Path(error.filename or folder).name}': {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise damaged(f"'{MANIFEST}' cannot be read") from None
    return manifest["info"]
