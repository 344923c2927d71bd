"""Parity with transformers is by tests/fixtures/chat/, which tools/make_chat_fixtures.py writes."""

import gc
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxllm.config import UserError
from jaxllm.data import rendering
from jaxllm.data.chat_template import Asked, ChatTemplate, Rendered, load_chat_template

FIXTURES = Path(__file__).parents[1] / "fixtures" / "chat"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hello"}]


def rendered(source, messages=HELLO, **options):
    return ChatTemplate(source, name="some/chat_template.jinja").render(messages, **options)


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.jinja")))
def test_every_conversation_is_rendered_as_transformers_renders_it(name):
    template = ChatTemplate((FIXTURES / f"{name}.jinja").read_text(encoding="utf-8"), EXPECTED["special_tokens"])
    cases = [case for case in EXPECTED["cases"] if case["template"] == name]
    assert len(cases) == 4 * len(EXPECTED["conversations"])
    for case in cases:
        messages = EXPECTED["conversations"][case["conversation"]]
        options = {"tools": EXPECTED["tools"], "documents": [{"title": "a"}, {"title": "b"}]} if case["tools"] else {}
        if "error" in case:
            with pytest.raises(UserError) as caught:
                template.render(messages, add_generation_prompt=case["prompt"], **options)
            assert case["error"] in str(caught.value)
            continue
        assert template.render(messages, add_generation_prompt=case["prompt"], **options) == case["text"], case
        if not case["prompt"]:
            text, spans = template.render_with_spans(messages, **options)
            assert (text, [list(span) for span in spans]) == (case["text"], case["spans"])


def test_spans_hold_what_the_assistant_has_said():
    template = ChatTemplate((FIXTURES / "chatml.jinja").read_text())
    text, spans = template.render_with_spans(
        [
            {"role": "user", "content": "Hi 🦊"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "漢字"},
        ]
    )
    assert [text[start:end] for start, end in spans] == ["Hello<|im_end|>", "漢字<|im_end|>"]


def test_a_span_that_has_no_place_in_the_text_is_refused_and_the_text_is_not():
    source = "{% set x %}{% generation %}said{% endgeneration %}{% endset %}before {{ x }}"
    assert rendered(source) == "before said"
    with pytest.raises(UserError, match=r"\{% generation %\} stands in a macro or in \{% set %\}, and has"):
        ChatTemplate(source).render_with_spans(HELLO)


def test_variables_of_the_caller_come_before_special_tokens_and_after_the_conversation():
    template = ChatTemplate("{{ bos_token }}{{ mood }}{{ messages | length }}", {"bos_token": "<s>"})
    assert template.render(HELLO, mood="calm") == "<s>calm1"
    assert template.render(HELLO, bos_token="<b>") == "<b>1"


def test_the_date_is_todays():
    assert rendered("{{ strftime_now('%Y-%m') }}") == time.strftime("%Y-%m")


def test_of_several_templates_one_is_for_tools():
    both = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "documents"})
    assert both.render(HELLO) == "plain"
    assert both.render(HELLO, tools=[]) == "tools"
    assert ChatTemplate({"default": "plain"}).render(HELLO, tools=[]) == "plain"
    with pytest.raises(UserError, match=r"one is named 'default'; there are \['rag'\]"):
        ChatTemplate({"rag": "documents"})
    with pytest.raises(UserError, match="chat template, template 'tool_use', line 1: no tools"):
        ChatTemplate({"default": "", "tool_use": "{{ raise_exception('no tools') }}"}).render(HELLO, tools=[])


@pytest.mark.parametrize(
    ("source", "content", "text"),
    [
        ("[{{ messages[0].content }}]{{ eos }}", "so far", "[so far"),
        ("[{{ messages[0].content }}]", "so far  ", "[so far  "),
        ("[{{ messages[0].content | trim }}]", "so far \n", "[so far"),
        ("[{{ messages[0].content[1].text }}]", [{"type": "image"}, {"type": "text", "text": "so"}], "[so"),
    ],
)
def test_a_final_message_that_is_gone_on_with_is_open(source, content, text):
    message = {"role": "assistant", "content": content}
    assert rendered(source, [message], continue_final_message=True) == text
    assert message == {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("source", "message", "options", "complaint"),
    [
        ("x", {"content": "a"}, {}, "the final message is not rendered whole"),
        ("x", {"content": []}, {}, "message 1: has no text that could be gone on with"),
        ("x", {"content": "a"}, {"add_generation_prompt": True}, "leaves no place for a generation prompt"),
    ],
)
def test_a_final_message_that_cannot_be_gone_on_with_is_told(source, message, options, complaint):
    with pytest.raises(UserError, match=complaint):
        rendered(source, [{"role": "assistant", **message}], continue_final_message=True, **options)


def test_none_is_as_if_left_out_and_reasoning_has_all_its_names():
    message = {"role": "assistant", "content": None, "tool_calls": None, "reasoning": "why"}
    seen = json.loads(rendered("{{ messages[0] | tojson }}", [message]))
    assert seen.pop("role") == "assistant"
    assert seen == dict.fromkeys(("reasoning", "thinking", "reasoning_content"), "why")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "a conversation is a list of at least one message, got "),
        ("Hello", "a conversation is a list of at least one message, got 'Hello'"),
        ({"role": "user", "content": "Hello"}, "a conversation is a list of at least one message"),
        (["Hello"], "message 1: expected an object with a 'role', got 'Hello'"),
        ([*HELLO, {"content": "Hello"}], "message 2: expected an object with a 'role', got {'content': 'Hello'}"),
        ([{"role": 1, "content": "Hello"}], "message 1: expected an object with a 'role'"),
        ([{"role": "user", "content": 7}], "message 1: 'content' is neither text nor a list of parts, got 7"),
        ([{"role": "user", "content": ["a"]}], "message 1: 'content' is neither text nor a list of parts"),
        ([{"role": "user", "content": {"a": 1}}], "message 1: 'content' is neither text nor a list of parts"),
        ([{"role": "user", "content": "a", "time": time}], "a conversation is made of what JSON can hold"),
    ],
)
def test_messages_of_another_shape_are_told(messages, complaint):
    with pytest.raises(UserError) as caught:
        rendered("x", messages)
    assert complaint in str(caught.value)


def test_what_a_tool_returns_may_be_anything():
    message = {"role": "tool", "content": {"t": [20]}}
    assert rendered("{{ messages[0].content.t[0] }}", [message]) == "20"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("one\n{% if %}", "line 2: Expected an expression"),
        ("{% for x in y %}", "line 1: Unexpected end of template"),
        ("{{ 1 | nothing }}", "line 1: No filter named 'nothing'"),
        ("\n\n{{ raise_exception('roles must alternate') }}", "line 3: roles must alternate"),
        ("\n{{ nobody.name }}", "line 2: 'nobody' is undefined"),
        ("{{ messages[0].content.name.first }}", "line 1: 'str object' has no attribute 'name'"),
        ("{{ messages + 1 }}", "line 1: TypeError: can only concatenate list"),
        ("{% include 'other' %}", "line 1: TypeError: no loader for this environment specified"),
        ("{{" + "(" * 9999, "RecursionError"),
    ],
)
def test_what_is_wrong_with_a_template_is_told_by_file_and_line(source, complaint):
    with pytest.raises(UserError) as caught:
        rendered(source)
    assert str(caught.value).startswith("some/chat_template.jinja")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages['__class__'] }}",
        "{{ raise_exception | attr('__globals__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{a.__class__}'.format_map({'a': messages}) }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ self._TemplateReference__context }}",
        "{{ namespace.__init__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.mro() }}",
    ],
)
def test_a_template_does_not_reach_python(source):
    with pytest.raises(UserError, match=r"some/chat_template\.jinja, line 1: .*(unsafe|underscore|no attribute 'mro')"):
        rendered(source)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "line 1: OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "line 1: RecursionError"),
        ("{{ 'x' * 10 ** 11 }}", "it needs more memory than it may have"),
        ("{{ 'x' * 2 ** 26 }}!", "the text has more than 67108864 characters"),
        (
            "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "it needs more memory than it may have",
        ),
    ],
)
def test_a_template_that_asks_for_too_much_is_refused(source, complaint, monkeypatch):
    monkeypatch.setattr(rendering, "MEMORY", 2**29)
    with pytest.raises(UserError, match=r"some/chat_template\.jinja") as caught:
        rendered(source)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",  # computed when it is compiled
    ],
)
def test_a_template_without_end_is_stopped(source, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0)  # the system counts whole ones
    with pytest.raises(UserError, match=r"some/chat_template\.jinja.*it was stopped after 0 s of work: does it have"):
        rendered(source)


def test_after_a_conversation_without_end_the_next_is_rendered(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0)  # the system counts whole ones
    template = ChatTemplate("{{ 9 ** (messages[0].n ** messages[0].n) }}")
    with pytest.raises(UserError, match="it was stopped"):
        template.render([{"role": "user", "n": 9}])
    assert template.render([{"role": "user", "n": 1}]) == "9"


def test_many_are_rendered_in_one_request_and_each_that_ends_the_process_is_told(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0)  # the system counts whole ones
    template = ChatTemplate("{{ 9 ** (messages[0].n ** messages[0].n) }}")
    found = template.render_each([Asked([{"role": "user", "n": n}]) for n in (1, 9, 0, 9, 1)])
    assert [each.text if isinstance(each, Rendered) else None for each in found] == ["9", None, "9", None, "9"]
    assert all("it was stopped" in str(found[i]) for i in (1, 3))


def test_threads_render_at_once_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr("jaxllm.data.rendering.os.cpu_count", lambda: 3)
    template = ChatTemplate("{% for i in range(messages[0].n) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x")
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: template.render([{"role": "user", "n": 5}]), range(10)))
    assert found == ["x"] * 10
    assert 1 < len(template._renderers._idle) <= 3


def test_a_process_that_dies_is_told_and_replaced():
    template = ChatTemplate("{{ messages[0].content }}")
    template._renderers._idle[0].process.kill()
    template._renderers._idle[0].process.wait()
    with pytest.raises(UserError, match=r"its process has died \(status -9\)"):
        template.render(HELLO)
    assert template.render(HELLO) == "Hello"


def test_an_answer_that_was_not_waited_for_is_not_the_next_ones(monkeypatch):
    template = ChatTemplate("{{ messages[0].content }}")

    def interrupted():
        raise KeyboardInterrupt

    with template._renderers._idle[0].process.stdout as answers:
        reader = SimpleNamespace(readline=interrupted, close=answers.close)
        monkeypatch.setattr(template._renderers._idle[0].process, "stdout", reader)
        with pytest.raises(KeyboardInterrupt):
            template.render([{"role": "user", "content": "first"}])
    assert template.render([{"role": "user", "content": "second"}]) == "second"


def test_threads_get_each_its_own_text():
    template = ChatTemplate("{{ messages[0].content }}")
    wrong = []

    def work(name):
        for i in range(50):
            text = f"{name} {i}" * 1000
            if template.render([{"role": "user", "content": text}]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_process_ends_with_its_template():
    template = ChatTemplate("x")
    process = template._renderers._idle[0].process
    del template
    gc.collect()
    assert process.poll() is not None


def test_without_jinja2_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"templates need jinja2: pip install 'jaxllm\[interop\]'"):
        ChatTemplate("x")


# In the folder of a model


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_jinja", ".jinja").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_without_a_template_has_none(tmp_path):
    assert load_chat_template(tmp_path) is None
    write(tmp_path, tokenizer_config_json={"bos_token": "<s>", "chat_template": None})
    assert load_chat_template(tmp_path) is None


def test_the_configuration_of_the_tokenizer_holds_the_template_and_special_tokens(tmp_path):
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ add_bos_token }}{{ image_token }}"
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    config = {**tokens, "add_bos_token": True, "image_token": "<i>", "chat_template": source}
    write(tmp_path, tokenizer_config_json=config)
    template = load_chat_template(tmp_path)
    assert template.render(HELLO) == "<s></s><i>"
    assert template.name == str(tmp_path / "tokenizer_config.json")


def test_a_list_of_templates_is_read_by_their_names(tmp_path):
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, tokenizer_config_json={"chat_template": listed})
    template = load_chat_template(tmp_path)
    assert (template.render(HELLO), template.render(HELLO, tools=[])) == ("plain", "tools")


def test_a_file_of_its_own_comes_first(tmp_path):
    write(tmp_path, tokenizer_config_json={"bos_token": "<s>", "chat_template": "old"})
    write(tmp_path, chat_template_jinja="{{ bos_token }}new\n", additional_chat_templates__tool_use_jinja="tools")
    template = load_chat_template(str(tmp_path))
    assert (template.render(HELLO), template.render(HELLO, tools=[])) == ("<s>new", "tools")
    assert template.name == str(tmp_path / "chat_template.jinja")


def test_without_a_configuration_the_tokenizer_names_the_special_tokens(tmp_path, tokenizer):
    write(tmp_path, chat_template_jinja="{{ bos_token }} {{ eos_token }}")
    assert load_chat_template(tmp_path, tokenizer).render(HELLO) == "<s> </s>"
    write(tmp_path, tokenizer_config_json={"eos_token": "<|end|>"})
    assert load_chat_template(tmp_path, tokenizer).render(HELLO) == " <|end|>"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"tokenizer_config_json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config_json": [1]}, r"tokenizer_config\.json: expected an object, got \[1\]"),
        ({"tokenizer_config_json": {"chat_template": 7}}, "is neither a template nor a list of such"),
        ({"tokenizer_config_json": {"chat_template": [{"name": "default"}]}}, "is neither a template nor a list"),
        ({"tokenizer_config_json": {"chat_template": "{% if %}"}}, r"tokenizer_config\.json, line 1: Expected an expr"),
        ({"chat_template_jinja": "a\n{% if %}"}, r"chat_template\.jinja, line 2: Expected an expression"),
        ({"additional_chat_templates__rag_jinja": "x"}, r"one is named 'default'; there are \['rag'\]"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, files, complaint):
    write(tmp_path, **files)
    with pytest.raises(UserError, match=complaint):
        load_chat_template(tmp_path)


def test_a_template_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8 text"):
        load_chat_template(tmp_path)
