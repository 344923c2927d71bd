"""Records of TFDS data sets, read by index and without TensorFlow."""

import contextlib
import difflib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxllm.config import UserError
from jaxllm.data.cache import file_hashes, key_of
from jaxllm.data.document import Record
from jaxllm.data.records import missing_field


class TfdsRecords:
    """A split of any TFDS data set: one that is prepared on this machine, or that TFDS can prepare here."""

    def __init__(self, name: str, split: str, wanted: Mapping[str, str] | None = None):
        """
        Args:
            name: `name` or `name/config`.
            split: of the data set.
            wanted: fields that it must have, by the options that gave them; the others are not read. None reads all.

        Raises:
            UserError: no such data set, configuration, split or field, or it cannot be prepared here.
        """
        builder = _builder(name)
        self._wanted = builder.info.features if wanted is None else wanted.values()
        try:
            self._info = builder.info.splits[split]
            self._records = builder.as_data_source(split=split)
        except NotImplementedError:
            raise UserError(
                f"the TFDS data set '{name}' was prepared as {builder.info.file_format.value}, which cannot be "
                "read by index; prepare it again with file_format='array_record'"
            ) from None
        except (KeyError, ValueError):
            raise UserError(
                f"the TFDS data set '{name}' has no split '{split}'; it has {', '.join(builder.info.splits)}"
            ) from None
        if missing := missing_field(f"the TFDS data set '{name}'", wanted or {}, builder.info.features):
            raise UserError(missing)
        self._name = f"{name}/{split}"

    def fingerprint(self) -> str:
        files = [Path(instruction.filename) for instruction in self._info.file_instructions]
        return key_of(["tfds", self._name, file_hashes(files)])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._name}:{index}"
        try:
            record = self._records[index]
        except Exception as error:  # the reader of records has no class of its own for a damaged file
            raise UserError(f"{name} cannot be read: {error}; prepare the data set again") from error
        return Record(name, name, {field: _plain(record[field]) for field in self._wanted})


def _plain(value: Any) -> Any:
    """A value of TFDS without numpy; a sequence of objects comes as an object of sequences."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        fields = {name: _plain(item) for name, item in value.items()}
        lengths = {len(item) if isinstance(item, list) else -1 for item in fields.values()}
        if len(lengths) == 1 and -1 not in lengths:
            return [dict(zip(fields, items, strict=True)) for items in zip(*fields.values(), strict=True)]
        return fields
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _builder(name: str) -> Any:
    try:
        builder = tfds.builder(name)
        if not builder.is_prepared():
            with quiet():
                builder = tfds.builder(name, file_format="array_record")
                builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0], known, n=3, cutoff=0.0)
        raise UserError(f"no TFDS data set is named '{name}'; the nearest are {', '.join(near)}") from None
    except Exception as error:  # each data set fails in its own way: no network, a missing package, a full disk
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"the TFDS data set '{name}' cannot be prepared here: {reason}") from error
    return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from drawing progress bars and from printing on the standard output."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
