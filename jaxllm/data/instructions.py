"""Sources of conversations: records of instruction data, and the functions of the standard library."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.config import SourceConfig, UserError
from jaxllm.data.cache import key_of
from jaxllm.data.conversations import FIELDS, conversation, said
from jaxllm.data.document import BadRow, Document, Record, Records, marks_of
from jaxllm.data.rendering import Renderers

CHUNK = 512
"""Records whose templates are rendered at once."""


class Instructions:
    """Documents: the conversation of each record."""

    def __init__(self, records: Records, source: SourceConfig):
        """
        Raises:
            UserError: a template of the source is not written in Jinja, or jinja2 is not installed.
        """
        self._records, self._source = records, source
        self._templates = {
            key: template
            for key, template in (("prompt", source.prompt), ("completion", source.completion))
            if template is not None
        }
        self._renderers = Renderers() if self._templates else None
        self._reads: dict[str, list[str]] = {}
        self._held: tuple[int, list[Document | UserError]] = (-1, [])
        for key, template in self._templates.items():
            assert self._renderers is not None
            (answer,) = self._renderers.ask(template, [None])
            if "error" in answer:
                raise UserError(
                    f"data.sources.N.{key} = {template!r:.80}: {answer['error'].rstrip('.')}; a Jinja template such as "
                    "'{{ question }}' would do"
                )
            self._reads[key] = answer["names"]
        marks = [field for field in (source.task_field, source.group_field) if field is not None]
        self._needed = {*FIELDS, *marks, *itertools.chain.from_iterable(self._reads.values())}

    def fingerprint(self) -> str:
        source = self._source
        shape = [source.format, source.prompt, source.completion, source.system, source.task_field, source.group_field]
        return key_of(["instructions", shape, self._records.fingerprint()])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        chunk, place = divmod(index, CHUNK)
        if self._held[0] != chunk:
            self._held = chunk, self._read(range(chunk * CHUNK, min(len(self), (chunk + 1) * CHUNK)))
        found = self._held[1][place]
        if isinstance(found, UserError):
            raise found
        return found

    def _read(self, indices: range) -> list[Document | UserError]:
        """The documents, or what is wrong with them."""
        found: list[Any] = []
        for index in indices:
            try:
                found.append(self._with_fields(self._records[index]))
            except BadRow as error:
                found.append(error)
        good = [each for each in found if not isinstance(each, UserError)]
        made: list[dict[str, str | BadRow]] = [{} for _ in good]
        fields = [record.fields for record in good]
        for key, template in self._templates.items():
            variables = [{name: of[name] for name in self._reads[key] if name in of} for of in fields]
            for own, record, text in zip(made, good, self._render(key, template, variables), strict=True):
                if isinstance(text, UserError):
                    there = f"; it has {', '.join(record.fields)}" if "undefined" in str(text) else ""
                    text = BadRow(f"{record.where}, {text}{there}")
                own[key] = text
        documents = iter([self._document(record, own) for record, own in zip(good, made, strict=True)])
        return [each if isinstance(each, UserError) else next(documents) for each in found]

    def _with_fields(self, record: Record) -> Record:
        """A record of which no more is held than the fields that are read; the others are but named."""
        fields = record.fields
        return record._replace(fields={name: fields[name] if name in self._needed else None for name in fields})

    def _document(self, record: Record, made: Mapping[str, str | BadRow]) -> Document | UserError:
        try:
            if wrong := [value for value in made.values() if isinstance(value, BadRow)]:
                raise wrong[0]
            chat = conversation({**record.fields, **made}, self._source, record.where)
            task, group = marks_of(record, self._source.task_field, self._source.group_field)
        except BadRow as error:
            return error
        return Document(record.name, said(chat), named_by_place=True, task=task, group=group, chat=chat)

    def _render(self, key: str, template: str, variables: Sequence[Mapping[str, Any]]) -> list[str | UserError]:
        """The text for each of the variables, or why there is none."""
        assert self._renderers is not None
        plain = json.loads(json.dumps(variables, default=_text_of))
        answers = self._renderers.ask(template, plain, strict=True)
        return [
            UserError(f"data.sources.N.{key}: {answer['error']}") if "error" in answer else answer["text"]
            for answer in answers
        ]


def _text_of(value: Any) -> str:
    """What JSON does not know, as a template is to read it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
