"""Paths as a user writes them, and files that are there whole or not at all."""

import contextlib
import os
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
