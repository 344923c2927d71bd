"""The chat template of a run: its model's own, one in a file, or one that is built in."""

from pathlib import Path

from jaxllm.common.paths import user_path
from jaxllm.config import BUILT_IN_TEMPLATES, TokenizerConfig, UserError
from jaxllm.data.chat_template import ChatTemplate, load_chat_template, special_tokens, template_from_file
from jaxllm.data.tokenizer import Tokenizer

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- '# Tools\n\nCall them by <tool_call>{"name": ..., "arguments": ...}</tool_call>.\n\n<tools>\n' }}
    {%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}
    {{- '</tools><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content if message.content is string else message.content | tojson }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
            {{- '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
"""The turns of ChatML, with tools as Hermes and Qwen write them."""

PLAIN = """
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.tool_calls %}
            {{- raise_exception('the template plain has no words for the calls of tools') }}
        {%- endif %}
        {{- '### Response:\n' + message.content + eos_token + ('' if loop.last else '\n\n') }}
    {%- elif message.role == 'user' %}
        {{- '### Instruction:\n' + message.content + '\n\n' }}
    {%- elif message.role == 'tool' %}
        {{- raise_exception('the template plain has no words for what tools return') }}
    {%- else %}
        {{- message.content + '\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}
"""
"""The headings of Alpaca, for models whose vocabulary knows no turns."""

SOURCES = dict(zip(BUILT_IN_TEMPLATES, (CHATML, PLAIN), strict=True))


def run_template(config: TokenizerConfig, tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template that `config` asks for.

    Raises:
        UserError: there is none, it cannot be read, or the tokenizer does not have its tokens.
    """
    named = config.chat_template
    folder = None if config.path is None else user_path(config.path).parent
    if named in SOURCES:
        return _built_in(named, config, folder, tokenizer)
    if named is None:
        template = None if folder is None else load_chat_template(folder, tokenizer)
        where = "there is none beside a tokenizer that is trained" if folder is None else f"'{folder}' has none"
    elif (path := user_path(named)).is_file():
        template = template_from_file(path, folder, tokenizer)
    else:
        template = load_chat_template(path, tokenizer)
        where = f"'{named}' has none" if path.is_dir() else "there is no such file or folder"
        if template is not None:
            template = ChatTemplate(template.sources, special_tokens(folder, tokenizer), name=template.name)
    if template is None:
        raise UserError(
            f"tokenizer.chat_template = {named!r}: objective.kind = 'sft' needs a chat template, and {where}; the "
            "folder of a model, a .jinja file, 'chatml' or 'plain' would do"
        )
    return template


def _built_in(name: str, config: TokenizerConfig, folder: Path | None, tokenizer: Tokenizer) -> ChatTemplate:
    if name == "chatml" and (missing := {"<|im_start|>", "<|im_end|>"} - tokenizer.specials):
        remedy = "a tokenizer that has them, or"
        if config.path is None:
            remedy = "--tokenizer.extra-tokens '<|im_start|>' '<|im_end|>', or"
        raise UserError(
            f"tokenizer.chat_template = 'chatml': the tokenizer has no special token {sorted(missing)[0]}; {remedy} "
            "'plain' would do"
        )
    # A text begins as the model's own texts do.
    begin = "{{- bos_token }}" if name == "plain" and tokenizer.begins else ""
    return ChatTemplate(begin + SOURCES[name], special_tokens(folder, tokenizer), name=f"the template '{name}'")
