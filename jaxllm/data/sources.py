"""Opens the source that a `SourceConfig` describes."""

import glob
import itertools
import typing
from collections.abc import Mapping
from pathlib import Path

from jaxllm.config import SourceConfig, UserError, from_dict
from jaxllm.data.document import Records, Source
from jaxllm.data.files import SUFFIXES, CodeFiles, TextFiles, find_files
from jaxllm.data.instructions import Instructions
from jaxllm.data.records import JsonLines, ParquetFiles, TextRecords
from jaxllm.data.stdlib import StdlibSource
from jaxllm.data.stdlib_functions import StdlibFunctions


def open_source(config: SourceConfig, root: Path) -> Source:
    """The source, whose own prepared files (if it needs any) go under the cache folder `root`.

    Raises:
        UserError: no such file, folder or data set, or no path where one is needed.
    """
    if config.kind == "stdlib":
        return StdlibSource(root)
    if config.kind == "stdlib_functions":
        return StdlibFunctions(root, config.system)
    if config.path is None:
        raise UserError(f"a source of kind '{config.kind}' needs a path; set data.sources.N.path")
    if config.format != "text":
        return Instructions(_records(config, config.path, None), config)
    options = ("field", "target_field", "task_field", "group_field")
    wanted = {option: name for option in options if (name := getattr(config, option)) is not None}
    if config.kind in ("text", "code"):
        files = find_files(config.kind, config.path)
        return TextFiles(files) if config.kind == "text" else CodeFiles(files)
    return TextRecords(_records(config, config.path, wanted), wanted)


def _records(config: SourceConfig, path: str, wanted: Mapping[str, str] | None) -> Records:
    if config.kind == "tfds":
        from jaxllm.data.tfds_source import TfdsRecords  # TFDS takes a second to import

        return TfdsRecords(path, config.split, wanted)
    files = find_files(config.kind, path)
    return JsonLines(files) if config.kind == "jsonl" else ParquetFiles(files, wanted)


def task_name(source: SourceConfig) -> str:
    """What the documents of a source are called that do not say it themselves."""
    if source.task is not None or source.path is None or source.kind == "tfds":
        return source.task or source.path or source.kind
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(source.path).parts)
    name = Path(*parts).name
    return name.removesuffix(".gz").rpartition(".")[0] or name or source.kind


def parse_source(text: str, field: str = "text", otherwise: str = "") -> SourceConfig:
    """`stdlib`, `KIND:PATH`, or a path whose suffix says the kind, which is `otherwise` that one, as a configuration.

    Raises:
        UserError: the kind cannot be told.
    """
    kinds = typing.get_args(typing.get_type_hints(SourceConfig)["kind"])
    kind, _, path = text.partition(":")
    if kind not in kinds:
        path = text
        kind = next((kind for kind, suffixes in SUFFIXES.items() if path.lower().endswith(suffixes)), otherwise)
    if not kind:
        raise UserError(f"source '{text}': give it as KIND:PATH, where KIND is one of {', '.join(kinds)}")
    return from_dict(SourceConfig, {"kind": kind, "path": path or None, "field": field})
