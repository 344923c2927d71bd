"""The TFDS builder of the embedded corpus. It writes array_record files and needs no TensorFlow."""

import platform
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxllm.data.stdlib_corpus.documents import documents


class StdlibCorpus(tfds.core.GeneratorBasedBuilder):
    """The Python source and reference text of the running interpreter's standard library."""

    VERSION = tfds.core.Version("1.0.0")

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=f"{platform.python_implementation().lower()}-{platform.python_version()}")
    ]
    """One, named after the interpreter, so that what two of them prepare never collides."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"name": text, "text": text}),
            license="PSF-2.0",
            disable_shuffling=True,  # the loader shuffles; the records keep the order of their names
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is fetched
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
        for name, text in documents():
            yield name, {"name": name, "text": text}
