"""The standard library as documents: its modules, and the language reference that `help()` shows."""

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def documents() -> Iterator[tuple[str, str]]:
    """(name, text) of each module outside the tests, then of each topic of `pydoc_data`, ordered by name.

    The table of `pydoc_data.topics` is given topic by topic, as the prose that it holds, in place of its
    source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in _modules(root):
        name = path.relative_to(root).as_posix()
        # _sysconfigdata holds the variables of the interpreter's own build: paths and flags of one machine.
        if name != "pydoc_data/topics.py" and not path.name.startswith("_sysconfigdata"):
            with tokenize.open(path) as file:  # heeds the module's coding line
                yield name, file.read()
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship it apart
        return
    for topic, text in sorted(topics.items()):
        yield f"pydoc_data/topics/{topic}", text


def digest() -> str:
    """A hash of every name and text: two interpreters share what is prepared if their libraries are equal."""
    digest = hashlib.blake2b(digest_size=8)
    for name, text in documents():
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def _modules(root: Path) -> list[Path]:
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)
