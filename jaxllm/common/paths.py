"""Paths as a user writes them, and files that are there whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxllm.config import UserError


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path`, with a leading `~` or `~name` as that user's home; where there is no such user it stays as it is.

    (`Path.expanduser` raises a `RuntimeError` there, so that no message could name the file.)
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name beside `path`, which takes its place when the block ends well, and is gone otherwise.

    Raises:
        UserError: it cannot be written.
    """
    writing = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield writing
        os.replace(writing, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, which takes its place when the block ends well, and is gone otherwise.

    Raises:
        UserError: `path` is there and is not an empty folder, or leads through a file.
        OSError: it cannot be written.
    """
    there = UserError(f"'{path}' is there already: name another folder, or remove it")
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise there
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"cannot make '{path}': a part of that path is a file") from None
    own = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".writing"))
    try:
        (writing := own / target.name).mkdir()
        yield writing
        try:
            os.replace(writing, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise there from None  # by now
    finally:
        shutil.rmtree(own, ignore_errors=True)
