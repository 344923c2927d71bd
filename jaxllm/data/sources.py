"""Opens the source that a `SourceConfig` describes."""

import typing
from pathlib import Path

from jaxllm.config import SourceConfig, UserError, from_dict
from jaxllm.data.document import Source
from jaxllm.data.files import SUFFIXES, CodeFiles, JsonLines, ParquetFiles, TextFiles, find_files
from jaxllm.data.stdlib import StdlibSource


def open_source(config: SourceConfig, root: Path) -> Source:
    """The source, whose own prepared files (if it needs any) go under the cache folder `root`.

    Raises:
        UserError: no such file, folder or data set, or no path where one is needed.
    """
    if config.kind == "stdlib":
        return StdlibSource(root)
    if config.path is None:
        raise UserError(f"a source of kind '{config.kind}' needs a path; set data.sources.N.path")
    fields = [config.field] if config.target_field is None else [config.field, config.target_field]
    if config.kind == "tfds":
        from jaxllm.data.tfds_source import TfdsSource  # TFDS takes a second to import

        return TfdsSource(config.path, config.split, *fields)
    files = find_files(config.kind, config.path)
    if config.kind == "jsonl":
        return JsonLines(files, *fields)
    if config.kind == "parquet":
        return ParquetFiles(files, *fields)
    return TextFiles(files) if config.kind == "text" else CodeFiles(files)


def parse_source(text: str, field: str = "text") -> SourceConfig:
    """`stdlib`, `KIND:PATH`, or a path whose suffix says the kind, as a configuration.

    Raises:
        UserError: the kind cannot be told.
    """
    kinds = typing.get_args(typing.get_type_hints(SourceConfig)["kind"])
    kind, _, path = text.partition(":")
    if kind not in kinds:
        path = text
        kind = next((kind for kind, suffixes in SUFFIXES.items() if path.lower().endswith(suffixes)), "")
    if not kind:
        raise UserError(f"source '{text}': give it as KIND:PATH, where KIND is one of {', '.join(kinds)}")
    return from_dict(SourceConfig, {"kind": kind, "path": path or None, "field": field})
