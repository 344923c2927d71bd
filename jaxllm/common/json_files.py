"""Files of JSON that others have written, with one clear message for what will not do."""

import json
from pathlib import Path
from typing import TypeVar

from jaxllm.config import UserError

Kind = TypeVar("Kind", dict, list)


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """What a file holds: an object, or a list.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None
    if not isinstance(content, kind):
        raise UserError(f"'{path}': expected {'an object' if kind is dict else 'a list'}, got {content!r:.60}")
    return content
