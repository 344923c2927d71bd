"""Conversations of a recipe as rows, by task: those that a run of it is not trained on, and the others."""

from collections.abc import Sequence

from jaxllm.config import DataConfig, UserError
from jaxllm.data.cache import cache_root
from jaxllm.data.chat_template import Asked, ChatTemplate
from jaxllm.data.document import Chat
from jaxllm.data.sources import open_source, task_name
from jaxllm.data.split import Split
from jaxllm.data.survey import kept_documents, survey
from jaxllm.evaluation.rows import Row


def held_out_rows(data: DataConfig, progress: bool = False) -> list[Row]:
    """A row for each held-out conversation that ends with what the assistant says, which is the one right answer.

    Those of a task are in the order of its source, as the recipe splits them; `progress` shows a bar.

    Raises:
        UserError: a source that cannot be used, or none of them gives such a conversation.
    """
    rows = _rows(data, True, progress)
    if not rows:
        raise UserError("--held-out: the recipe holds out no conversation; data.validation_fraction says how many")
    return rows


def trained_rows(data: DataConfig) -> list[Row]:
    """Such rows of the conversations that are trained on; there may be none. Raises as `held_out_rows` otherwise."""
    return _rows(data, False, False)


def _rows(data: DataConfig, held_out: bool, progress: bool) -> list[Row]:
    root = cache_root(data.cache_dir)
    sources = [open_source(source, root) for source in data.sources]
    split = Split.of(data)
    found = survey(sources, split, skip_bad=data.skip_bad, progress=progress)
    rows = []
    for task, is_held_out, document in kept_documents(sources, found):
        source, own = found.tasks[task]
        if is_held_out == held_out and document.chat is not None and (answer := _answer(document.chat)) is not None:
            name = task_name(data.sources[source]) if own is None else own
            asked = tuple({k: v for k, v in turn.items() if k != "weight"} for turn in document.chat.messages[:-1])
            rows.append(Row(document.name, name, asked, (answer,)))
    return rows


def accepted(rows: Sequence[Row], template: ChatTemplate) -> list[Row]:
    """Those whose conversation a template does not refuse, as `data.skip_bad` leaves the others out of training."""
    asked = [Asked(row.prompt, None, True) for row in rows if not isinstance(row.prompt, str)]
    texts = iter(template.render_each(asked))
    return [row for row in rows if isinstance(row.prompt, str) or not isinstance(next(texts), UserError)]


def _answer(chat: Chat) -> str | None:
    """What the assistant says at the end, if it does and says it in words."""
    last = chat.messages[-1]
    text = last.get("content") if last.get("role") == "assistant" and not last.get("tool_calls") else None
    return text if isinstance(text, str) and len(chat.messages) > 1 and not chat.tools else None
