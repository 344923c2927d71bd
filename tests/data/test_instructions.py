"""Sources of conversations, from files to the corpus."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from jaxllm.config import DataConfig, SourceConfig, TokenizerConfig, UserError
from jaxllm.data import instructions
from jaxllm.data.corpus import prepare_corpus
from jaxllm.data.document import BadRow
from jaxllm.data.sources import open_source, task_name
from jaxllm.data.stdlib_functions import StdlibFunctions
from tests.data.test_files import write_parquet

ANSWER = "{{ answer.split('#### ')[1] }}"


@pytest.fixture
def write(tmp_path):
    """A source of JSON lines with such rows."""

    def written(rows, name="rows.jsonl", **fields):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return SourceConfig(kind="jsonl", path=str(path), **{"format": "auto", **fields})

    return written


def opened(source, tmp_path):
    return open_source(source, tmp_path / "unused")


def contents(document):
    return [message["content"] for message in document.chat.messages]


def questions(count):
    return [{"question": f"{i} + 1?", "answer": f"so #### {i + 1}"} for i in range(count)]


# Templates over fields


def test_templates_make_prompt_and_completion_of_any_fields(write, tmp_path):
    source = write(questions(7), format="prompt_completion", prompt="Q: {{ question }}", completion=ANSWER)
    found = opened(source, tmp_path)
    assert [contents(found[i]) for i in (6, 0, 3)] == [["Q: 6 + 1?", "7"], ["Q: 0 + 1?", "1"], ["Q: 3 + 1?", "4"]]
    assert found[2].name == "rows.jsonl:3"
    assert found[2].text == "Q: 2 + 1?\n3"


def test_fields_may_be_called_as_what_jinja_knows(write, tmp_path):
    rows = [{"range": "1-5", "dict": "d", "namespace": "n"}]
    source = write(rows, format="prompt_completion", prompt="{{ range }} {{ dict }}", completion="{{ namespace }}")
    assert contents(opened(source, tmp_path)[0]) == ["1-5 d", "n"]


def test_many_rows_are_rendered_in_one_request(write, tmp_path, monkeypatch):
    asked = []
    ask = instructions.Renderers.ask
    monkeypatch.setattr(
        instructions.Renderers,
        "ask",
        lambda self, source, rows, **o: asked.append(len(rows)) or ask(self, source, rows, **o),
    )
    monkeypatch.setattr(instructions, "CHUNK", 10)
    found = opened(
        write(questions(25), format="prompt_completion", prompt="{{ question }}", completion=ANSWER), tmp_path
    )
    assert len([found[i] for i in range(25)]) == 25
    assert asked == [1, 1, 10, 10, 10, 10, 5, 5]


def test_a_row_that_a_template_refuses_is_bad_and_those_beside_it_are_not(write, tmp_path):
    rows = [questions(1)[0], {"question": "?", "answer": "unknown"}, {"question": "?"}, questions(2)[1]]
    found = opened(write(rows, format="prompt_completion", prompt="{{ question }}", completion=ANSWER), tmp_path)
    assert [contents(found[i])[1] for i in (0, 3)] == ["1", "2"]
    with pytest.raises(BadRow, match=r"rows\.jsonl:2, data\.sources\.N\.completion: .*no element 1"):
        found[1]
    with pytest.raises(
        BadRow, match=r"rows\.jsonl:3, data\.sources\.N\.completion: 'answer' is undefined; it has question"
    ):
        found[2]


def test_a_template_that_is_none_is_told_before_anything_is_read(write, tmp_path):
    with pytest.raises(UserError, match=r"data\.sources\.N\.prompt = '\{\{ question': unexpected end of template"):
        opened(write([], format="prompt_completion", prompt="{{ question"), tmp_path)


def test_what_json_does_not_know_is_read_as_text(tmp_path):
    import datetime

    path = write_parquet(tmp_path / "a.parquet", {"day": [datetime.date(2024, 5, 1)], "b": [b"raw"], "answer": ["yes"]})
    source = SourceConfig(
        kind="parquet",
        path=str(path),
        format="prompt_completion",
        prompt="{{ day }} {{ b }}",
        completion="{{ answer }}",
    )
    assert contents(opened(source, tmp_path)[0]) == ["2024-05-01 raw", "yes"]


# Rows


def test_parquet_rows_hold_messages(tmp_path):
    messages = [[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]] * 2
    path = write_parquet(tmp_path / "a.parquet", {"messages": messages, "task": ["x", "y"]})
    found = opened(SourceConfig(kind="parquet", path=str(path), format="auto", task_field="task"), tmp_path)
    assert [(contents(found[i]), found[i].task) for i in range(2)] == [(["one", "two"], "x"), (["one", "two"], "y")]


def test_many_small_row_groups_are_not_held_at_once(tmp_path, monkeypatch):
    table = pyarrow.table({"prompt": [f"a{i}" for i in range(60)], "completion": ["b"] * 60})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    files = []
    opened_file = pyarrow.parquet.ParquetFile
    monkeypatch.setattr(
        pyarrow.parquet, "ParquetFile", lambda *args, **o: files.append(opened_file(*args, **o)) or files[-1]
    )
    found = opened(SourceConfig(kind="parquet", path=str(tmp_path / "a.parquet"), format="auto"), tmp_path)
    assert [contents(found[i])[0] for i in range(60)] == [f"a{i}" for i in range(60)]
    assert len(files) == 1


def test_the_fingerprint_follows_what_decides_the_conversations(write, tmp_path):
    base = {"format": "prompt_completion", "prompt": "{{ question }}", "completion": ANSWER}
    others = (
        {},
        {"prompt": "Q {{ question }}"},
        {"completion": "{{ answer }}"},
        {"system": "s"},
        {"task_field": "answer"},
    )
    prints = [opened(write(questions(2), **{**base, **other}), tmp_path).fingerprint() for other in others]
    assert len(set(prints)) == 5
    assert opened(write(questions(2), **base, task="named", loss_weight=2.0), tmp_path).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "jsonl", "path": "data/multi.jsonl.gz"}, "multi"),
        ({"kind": "text", "path": "data/**/*.txt"}, "data"),
        ({"kind": "code", "path": "src"}, "src"),
        ({"kind": "tfds", "path": "glue/sst2"}, "glue/sst2"),
        ({"kind": "stdlib_functions"}, "stdlib_functions"),
        ({"kind": "text", "path": "a.txt", "task": "plays"}, "plays"),
    ],
)
def test_a_task_is_called_after_its_file_unless_it_is_named(fields, name):
    assert task_name(SourceConfig(**fields)) == name


def test_functions_of_the_library_are_instructions(monkeypatch, cache):
    module = (
        "class A:\n    @staticmethod\n    async def f(x, *, y=1) -> int:\n"
        '        """Adds.\n\n        And more.\n        """\n        return x + y\n\n'
        '    def g(self):\n        """Says.\n\nAt the margin.\n        """\n# So is this.\n        return 1\n\n'
        "def silent():\n    pass\n"
    )
    small = [("pkg/__init__.py", module), ("pydoc_data/topics/if", "prose")]
    monkeypatch.setattr("jaxllm.data.stdlib_corpus.documents.documents", lambda: iter(small))
    monkeypatch.setattr("jaxllm.data.stdlib_corpus.builder.documents", lambda: iter(small))
    found = StdlibFunctions(cache, system="be terse")
    assert len(found) == 2
    system, asked, answer = contents(found[0])
    assert (found[0].name, system) == ("pkg/__init__.py:3", "be terse")
    assert asked == (
        "Write the method `A.f` of the Python module `pkg`:\n\nasync def f(x, *, y=1) -> int:\n\nAdds.\n\nAnd more."
    )
    assert answer.startswith('@staticmethod\nasync def f(x, *, y=1) -> int:\n    """Adds.')
    assert answer.endswith("return x + y")
    assert contents(found[1])[2] == 'def g(self):\n    """Says.\n\nAt the margin.\n    """\n# So is this.\n    return 1'


# The corpus


def prepared(*sources, model, template="plain", **fields):
    data = DataConfig(**{"sources": sources, "validation_fraction": 0.0, "workers": 2, **fields})
    return prepare_corpus(data, TokenizerConfig(path=str(model), chat_template=template))


def test_conversations_have_flags_and_texts_have_none(write, model_path):
    chats = write([{"prompt": f"name {i}", "completion": f"value {i}"} for i in range(5)])
    text = write([{"text": "total"}], "text.jsonl", format="text")
    corpus = prepared(chats, text, model=model_path)
    documents, texts = corpus.train
    assert texts.trained is None
    assert len(documents.trained) == len(documents.tokens)
    tokenizer = corpus.tokenizer
    own = [
        tokenizer.decode(documents.tokens[a:b][documents.trained[a:b]]) for a, b in zip(*bounds(documents), strict=True)
    ]
    assert own == [f"value {i}" for i in range(5)]
    assert documents.trained_tokens == documents.trained.sum() > 10
    assert texts.trained_tokens == len(texts.tokens)
    assert corpus.report.tokens == len(documents.tokens) + len(texts.tokens) - 2


def bounds(documents):
    return documents.starts[:-1].tolist(), documents.starts[1:].tolist()


def test_documents_lie_by_tasks_each_with_its_own(write, model_path):
    rows = [{"prompt": f"{'abc'[i % 3]} {i}", "completion": f"{i}", "task": "abc"[i % 3]} for i in range(60)]
    corpus = prepared(write(rows, task_field="task"), model=model_path, validation_fraction=0.3)
    assert [task.name for task in corpus.tasks] == ["a", "b", "c"]
    seen = []
    for task, train, held_out in zip(corpus.tasks, corpus.train, corpus.validation, strict=True):
        for documents in (train, held_out):
            for d, (a, b) in enumerate(zip(*bounds(documents), strict=True)):
                text = corpus.tokenizer.decode(documents.tokens[a:b])
                line = int(documents.name(d).rpartition(":")[2])
                assert f"{task.name} {line - 1}" in text
                assert corpus.tokenizer.decode(documents.tokens[a:b][documents.trained[a:b]]) == f"{line - 1}"
                seen.append(line)
        names = [int(train.name(d).rpartition(":")[2]) for d in range(len(train))]
        assert names == sorted(names)
        assert train.bytes == sum(len(rows[n - 1]["prompt"] + rows[n - 1]["completion"]) + 1 for n in names)
    assert sorted(seen) == list(range(1, 61))


def test_tasks_are_chosen_and_held_out_whole(write, model_path):
    rows = [{"prompt": f"p {i}", "completion": "x", "task": "abc"[i % 3]} for i in range(60)]
    for fraction in (0.0, 0.2):
        source = write(rows, task_field="task", held_out_tasks=("b",))
        corpus = prepared(source, model=model_path, validation_fraction=fraction)
        counts = [(len(t), len(v)) for t, v in zip(corpus.train, corpus.validation, strict=True)]
        assert counts[1] == (0, 20)
        assert all(train > 0 and (held_out > 0) == (fraction > 0) for train, held_out in (counts[0], counts[2]))
    with pytest.raises(UserError, match=r"data\.sources\.0\.held_out_tasks: there is no task 'd'; the nearest are "):
        prepared(write(rows, task_field="task", held_out_tasks=("d",)), model=model_path)
    some = prepared(write(rows, task_field="task", tasks=("c", "a")), model=model_path)
    assert [(task.name, len(documents)) for task, documents in zip(some.tasks, some.train, strict=True)] == [
        ("a", 20),
        ("c", 20),
    ]
    with pytest.raises(UserError, match=r"data\.sources\.0\.tasks: there is no task 'd'; the nearest are "):
        prepared(write(rows, task_field="task", tasks=("a", "d")), model=model_path)
    with pytest.raises(UserError, match="are all that there is: leave something to train on"):
        prepared(write(rows, task_field="task", held_out_tasks=("a", "b", "c")), model=model_path)


def test_records_of_one_group_are_on_one_side_of_the_split_whatever_their_source(write, model_path):
    rows = [{"prompt": f"ask {i}", "completion": "x", "of": f"question {i}"} for i in range(60)]
    sources = (write(rows, "asked.jsonl", group_field="of"), write(rows[:40], "other.jsonl", group_field="of"))
    told = [replace(source, system=system) for source, system in zip(sources, (None, "Be brief."), strict=True)]
    corpus = prepared(*told, model=model_path, validation_fraction=0.3)
    first, second = ({int(v.name(d).rpartition(":")[2]) for d in range(len(v))} for v in corpus.validation)
    assert 5 < len(first) < 30
    assert second == {line for line in first if line <= 40}
    with pytest.raises(UserError, match=r"rows.jsonl:1, field 'from': expected the name of a group, got None"):
        prepared(write(rows, group_field="from"), model=model_path)


def test_tasks_of_one_name_in_two_sources_are_told_apart(write, model_path):
    first, second = (write([{"prompt": f"{n} {i}", "completion": "x"} for i in range(3)], f"{n}.jsonl") for n in "ab")
    corpus = prepared(replace(first, task="t"), replace(second, task="t"), model=model_path)
    assert [task.name for task in corpus.tasks] == ["t (data.sources.0)", "t (data.sources.1)"]


def test_equal_conversations_are_kept_once(write, model_path):
    rows = [{"prompt": "p", "completion": c} for c in ("a", "b", "a")]
    report = prepared(write(rows), model=model_path).report
    assert (report.documents, report.duplicates, report.empty) == (2, 1, 0)


def test_another_template_is_another_corpus(write, model_path, tmp_path):
    source = write([{"prompt": "p", "completion": "c"}])
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    plain, own = (prepared(source, model=model_path, template=t) for t in ("plain", str(tmp_path / "own.jinja")))
    assert plain.key != own.key
    assert plain.template.fingerprint() != own.template.fingerprint()
    names = [own.tokenizer.token_name(i) for i in own.train[0].tokens.tolist()]
    assert [name for name in names if name in own.tokenizer.specials] == [
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
        "<|end|>",
    ]


# Bad rows


def test_bad_rows_are_told_of_together(write, model_path):
    rows = [{"prompt": "p", "completion": "c"}, "{", *({"prompt": str(i)} for i in range(6))]
    with pytest.raises(UserError) as error:
        prepared(write(rows), model=model_path)
    first, *lines, remedy = str(error.value).splitlines()
    assert first == "7 of 8 documents cannot be used:"
    assert "rows.jsonl:2: not JSON" in lines[0]
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines[:5]] == ["2", "3", "4", "5", "6"]
    assert lines[5:] == ["  and 2 more"]
    assert remedy == "mend them or take them out, or leave them out by --skip-bad"


def test_bad_rows_are_left_out_and_counted_if_that_is_asked_for(write, model_path):
    source = write([{"prompt": f"p{i}", "completion": "c"} for i in range(3)] + ["{"])
    corpus = prepared(source, model=model_path, skip_bad=True)
    assert (corpus.report.documents, corpus.report.bad.count, corpus.report.bad.of) == (3, 1, 4)
    again = prepared(source, model=model_path, skip_bad=True)
    assert again.report == corpus.report
    with pytest.raises(UserError, match="1 of 4 documents cannot be used"):  # though it is in the cache
        prepared(source, model=model_path)


def test_a_row_that_the_chat_template_refuses_is_bad(write, model_path, tmp_path):
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}, {"messages": [{"role": "system", "content": "s"}, *turns]}]
    template = str(tmp_path / "strict.jinja")
    with pytest.raises(UserError, match=r"1 of 2 documents .*\n  rows\.jsonl:2: .*strict\.jinja, line 1: no system"):
        prepared(write(rows), model=model_path, template=template)
    corpus = prepared(write(rows), model=model_path, template=template, skip_bad=True)
    assert (corpus.report.documents, corpus.report.bad.count, len(corpus.train[0])) == (1, 1, 1)
    bad = prepared(write([*rows, *"{{{{{{"]), model=model_path, template=template, skip_bad=True).report.bad
    assert bad.count == 7
    assert [("not JSON" in reason, "no system" in reason) for reason in bad.first] == [(True, False)] * 5 + [(0, 1)]


def test_texts_that_are_none_are_left_out_too(write, model_path):
    source = write([{"text": "a"}, {"text": 5}, {"body": "c"}, {"text": "d"}], format="text")
    data = DataConfig(sources=(source,), validation_fraction=0.0, skip_bad=True)
    corpus = prepare_corpus(data, TokenizerConfig(path=str(model_path)))
    assert (corpus.report.documents, corpus.report.bad.count) == (2, 2)
    assert np.array_equal(corpus.train[0].index[:, 2], [0, 1, 2])
