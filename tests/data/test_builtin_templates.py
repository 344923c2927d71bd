"""Chat templates that need no file, and which one a run has."""

import json

import pytest

from jaxllm.config import TokenizerConfig, UserError
from jaxllm.data.builtin_templates import run_template
from jaxllm.data.chat_template import load_chat_template
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.tokenizer_training import train_tokenizer

TURNS = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def chatml_path(code_texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("chatml") / "chatml.model"
    train_tokenizer(code_texts, TokenizerConfig(vocab_size=450, extra_tokens=("<|im_start|>", "<|im_end|>")), path)
    return path


def rendered(path, name, messages, **options):
    template = run_template(TokenizerConfig(path=str(path), chat_template=name), load_tokenizer(path))
    return template.render(messages, **options)


def test_plain_has_headings_and_ends_answers(model_path):
    assert rendered(model_path, "plain", TURNS, add_generation_prompt=True) == (
        "<s>Be terse.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\n"
    )
    assert rendered(model_path, "plain", TURNS[:3]).endswith("Hello.</s>")
    with pytest.raises(
        UserError, match=r"the template 'plain', line .*: the template plain has no words for what tools"
    ):
        rendered(model_path, "plain", [*TURNS, {"role": "tool", "content": "3"}])


def test_chatml_has_the_turns_of_chatml(chatml_path):
    assert rendered(chatml_path, "chatml", TURNS, add_generation_prompt=True) == (
        "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_writes_tools_their_calls_and_what_they_return(chatml_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        *TURNS[:2],
        {"role": "assistant", "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": {"y": 4}},
        {"role": "assistant", "content": "So.", "tool_calls": [call]},
    ]
    told = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert rendered(chatml_path, "chatml", messages, tools=[{"name": "f"}]) == (
        "<|im_start|>system\nBe terse.\n\n# Tools\n\n"
        'Call them by <tool_call>{"name": ..., "arguments": ...}</tool_call>.\n\n<tools>\n{"name": "f"}\n</tools>'
        f"<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{told}\n{told}<|im_end|>\n<|im_start|>user\n"
        '<tool_response>\n3\n</tool_response>\n<tool_response>\n{"y": 4}\n</tool_response><|im_end|>\n'
        f"<|im_start|>assistant\nSo.\n{told}<|im_end|>\n"
    )


def test_chatml_needs_its_tokens(model_path):
    tokenizer = load_tokenizer(model_path)
    with pytest.raises(
        UserError, match=r"no special token <\|im_end\|>; a tokenizer that has them, or 'plain' would do"
    ):
        run_template(TokenizerConfig(path=str(model_path), chat_template="chatml"), tokenizer)
    with pytest.raises(UserError, match=r"--tokenizer\.extra-tokens '<\|im_start\|>' '<\|im_end\|>', or 'plain' would"):
        run_template(TokenizerConfig(chat_template="chatml"), tokenizer)


def test_the_template_beside_the_tokenizer_is_the_runs(model_path, tmp_path, tokenizer):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}own")
    assert run_template(TokenizerConfig(path=str(path)), tokenizer).render(TURNS) == "<s>own"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ bos_token }}other")
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<b>"}))
    other = TokenizerConfig(path=str(path), chat_template=str(tmp_path / "other"))
    assert run_template(other, tokenizer).render(TURNS) == "<s>other"  # the tokens are those of the tokenizer
    alone = TokenizerConfig(path=str(path), chat_template=str(tmp_path / "other" / "chat_template.jinja"))
    assert run_template(alone, tokenizer).render(TURNS) == "<s>other"


@pytest.mark.parametrize(
    ("path", "template", "complaint"),
    [
        (
            False,
            None,
            "None: objective.kind = 'sft' needs a chat template, and there is none beside a tokenizer that is",
        ),
        (True, None, "None: .* has none; the folder of a model, a .jinja file, 'chatml' or 'plain' would do"),
        (True, "chatlm", "'chatlm': .* there is no such file or folder; the folder of a model"),
        (True, ".", r"'\.': .*'\.' has none; the folder of a model"),
    ],
)
def test_a_run_without_a_template_is_told_what_would_do(model_path, tokenizer, path, template, complaint):
    config = TokenizerConfig(path=str(model_path) if path else None, chat_template=template)
    with pytest.raises(UserError, match=f"tokenizer.chat_template = {complaint}"):
        run_template(config, tokenizer)


def test_a_template_is_saved_as_it_is_loaded(model_path, tokenizer, tmp_path):
    template = run_template(TokenizerConfig(path=str(model_path), chat_template="plain"), tokenizer)
    template.save(tmp_path)
    again = load_chat_template(tmp_path, tokenizer)
    assert again.fingerprint() == template.fingerprint()
    assert again.render(TURNS) == template.render(TURNS)
    both = type(template)({"default": "a", "tool_use": "b"})
    both.save(tmp_path)
    assert load_chat_template(tmp_path, tokenizer).render(TURNS, tools=[{}]) == "b"
