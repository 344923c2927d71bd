"""What does not hold together in the data of a run, a line each."""

import math
from collections.abc import Iterator

from jaxllm.config.data import DataConfig, SourceConfig

OF_RECORDS = ("jsonl", "parquet", "tfds")
"""Kinds of sources that have fields."""


def gives_conversations(source: SourceConfig) -> bool:
    """In place of texts."""
    return source.kind == "stdlib_functions" or source.format != "text"


def data_mistakes(data: DataConfig, objective: str) -> Iterator[str]:
    """Each mistake as `field = value: what it must be`, given the kind of the objective."""
    if not data.sources:
        yield "data.sources is empty: give one source"
    for i, source in enumerate(data.sources):
        yield from _source(source, f"data.sources.{i}")
    if data.sources and not any(source.weight for source in data.sources):
        yield "data.sources: every weight is 0; give one source a positive weight"
    yield from _mixture(data)
    yield from _pairs(data, objective)
    yield from _conversations(data, objective)


def _source(source: SourceConfig, where: str) -> Iterator[str]:
    if source.kind.startswith("stdlib") and source.path is not None:
        yield f"{where}.path = {source.path!r}: kind {source.kind!r} has none; set {where}.kind to what the path holds"
    if not source.kind.startswith("stdlib") and not source.path:
        wanted = "the name of a data set" if source.kind == "tfds" else "a file, a folder or a glob"
        yield f"{where}.path = {source.path!r}: kind {source.kind!r} needs {wanted}"
    if not 0 <= source.weight < math.inf:
        yield f"{where}.weight = {source.weight}: must be at least 0"
    if not 0 < source.loss_weight < math.inf:
        yield f"{where}.loss_weight = {source.loss_weight}: must be above 0; to leave a source out, set its weight to 0"
    for field, off in (("format", "text"), ("target_field", None), ("task_field", None), ("group_field", None)):
        if getattr(source, field) != off and source.kind not in OF_RECORDS:
            kinds = "'jsonl', 'parquet' and 'tfds' have"
            yield f"{where}.{field} = {getattr(source, field)!r}: kind {source.kind!r} has no fields; {kinds}"
    for field in ("prompt", "completion"):
        if getattr(source, field) is not None and source.format != "prompt_completion":
            given = f"{where}.{field} = {getattr(source, field)!r:.60}"
            yield f"{given}: format {source.format!r} does not read it; 'prompt_completion' does"
    if source.system is not None and not gives_conversations(source):
        yield f"{where}.system = {source.system!r:.60}: format 'text' has no messages; None would do"
    for field in ("tasks", "held_out_tasks"):
        if (named := getattr(source, field)) and source.task_field is None:
            yield f"{where}.{field} = {named!r:.60}: needs {where}.task_field, which tells the tasks"
    if source.tasks and (unread := sorted({*source.held_out_tasks} - {*source.tasks})):
        yield f"{where}.held_out_tasks: {unread[0]!r} is not in {where}.tasks, and so is not read; add it there"
    if source.task is not None and source.task_field is not None:
        yield f"{where}.task = {source.task!r}: {where}.task_field names the task of each record; None would do"


def _mixture(data: DataConfig) -> Iterator[str]:
    mixture = data.mixture
    if (mixture.cap or 0) > 0 and mixture.kind == "weights":
        yield f"data.mixture.cap = {mixture.cap}: kind 'weights' does not read it; 'proportional' does"
    if mixture.temperature > 0 and mixture.temperature != 1 and mixture.kind != "temperature":
        yield f"data.mixture.temperature = {mixture.temperature}: kind {mixture.kind!r} does not read it; 1.0 would do"


def _pairs(data: DataConfig, objective: str) -> Iterator[str]:
    """Which sources must give pairs of texts, and which must not."""
    for i, source in enumerate(data.sources):
        where = f"data.sources.{i}.target_field = {source.target_field!r}"
        if source.target_field is None:
            if objective == "seq2seq":
                yield f"{where}: objective.kind = {objective!r} needs the field of what is to be written"
            elif any(other.target_field is not None for other in data.sources):
                yield f"{where}: another source gives pairs; all or none would do"
        elif objective not in ("seq2seq", "prefix"):
            yield f"{where}: objective.kind = {objective!r} has no use for pairs; 'seq2seq' and 'prefix' have"
    if data.packing == "concatenate" and any(source.target_field is not None for source in data.sources):
        yield "data.packing = 'concatenate': cuts pairs apart; 'documents' would do"


def _conversations(data: DataConfig, objective: str) -> Iterator[str]:
    """What those need, and what needs them."""
    conversations = [i for i, source in enumerate(data.sources) if gives_conversations(source)]
    if objective == "sft" and data.sources and not conversations:
        yield (
            "objective.kind = 'sft': no source gives conversations; another data.sources.N.format than 'text', or "
            "'causal', would do"
        )
    for i in conversations if objective != "sft" else ():
        field = "kind" if data.sources[i].kind == "stdlib_functions" else "format"
        yield (
            f"data.sources.{i}.{field} = {getattr(data.sources[i], field)!r}: objective.kind = {objective!r} has no "
            "use for conversations; 'sft' has"
        )
    if conversations and data.packing == "concatenate":
        yield "data.packing = 'concatenate': cuts conversations apart; 'documents' would do"
    if data.truncation != "end" and objective != "sft":
        yield f"data.truncation = {data.truncation!r}: objective.kind = {objective!r} does not read it; 'end' would do"
