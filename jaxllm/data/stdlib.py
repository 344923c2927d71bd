"""The embedded corpus as a source."""

from functools import cached_property
from pathlib import Path
from typing import Any

from jaxllm.data.cache import build_once, key_of
from jaxllm.data.document import Document
from jaxllm.data.stdlib_corpus.documents import digest


class StdlibSource:
    """The running interpreter's library, prepared once by its TFDS builder into the cache folder `root`."""

    def __init__(self, root: Path):
        self._digest = digest()
        self._folder = root / "stdlib" / self._digest

    def fingerprint(self) -> str:
        return key_of(["stdlib", self._digest])

    @cached_property
    def _records(self) -> Any:
        # Imported here because TFDS takes a second, which a run whose tokens are cached does not need to
        # spend.
        from jaxllm.data.stdlib_corpus.builder import StdlibCorpus
        from jaxllm.data.tfds_source import quiet

        def prepare(folder: Path) -> dict[str, Any]:
            try:
                with quiet():
                    StdlibCorpus(data_dir=folder, file_format="array_record").download_and_prepare()
            except OSError:
                raise
            except Exception as error:  # the writer of records reports a full disk in its own way
                raise OSError(f"the embedded corpus could not be written ({error})") from error
            return {}

        build_once(self._folder, prepare)
        return StdlibCorpus(data_dir=self._folder).as_data_source(split="train")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        record = self._records[index]
        return Document(record["name"].decode(), record["text"].decode())
