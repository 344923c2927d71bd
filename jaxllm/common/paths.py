"""Paths as a user writes them."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path`, with a leading `~` or `~name` as that user's home; where there is no such user it stays as it is.

    (`Path.expanduser` raises a `RuntimeError` there, so that no message could name the file.)
    """
    return Path(os.path.expanduser(path))
