"""The program in which templates run, a process of its own: a line of JSON in, one out for each of its `all`.

A template is a program by whoever published the model. Jinja's sandbox keeps it from Python's internals, but not from
work without end: nested loops, macros that call themselves, strings that double, `9 ** (9 ** 9)`, which is a single
operation. The system ends whatever takes too long, and refuses what needs too much memory.

    chat_renderer.py SECONDS BYTES

Processor time of one rendering, and memory of the process, which has 25 MB at its start.

What a template sees is what transformers shows it (`transformers.utils.chat_template_utils`, 5.24).
"""

import contextlib
import functools
import json
import math
import resource
import sys
import time
import traceback
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

CHARACTERS = 2**26
"""The longest text that is handed over."""


class Environment(ImmutableSandboxedEnvironment):
    """As transformers sets it up, but for `unsafe_undefined`."""

    def __init__(self, strict: bool) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
        )
        self.filters["tojson"] = to_json
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": Dict(),
            "namespace": PlainNamespace,
        }
        self.written = 0
        """Characters of the text so far."""
        self.generated: list[tuple[int, str]] = []
        """What stood in `{% generation %}`, and where it began."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Tells at once of what jinja would tell only when the value is used, and prints as nothing."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` around what the assistant has said."""

    tags = {"generation"}  # noqa: RUF012  as jinja declares it

    def parse(self, parser: Parser) -> Node:
        """A block whose text goes by `_said`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Any) -> str:
        text = caller()
        self.environment.generated.append((self.environment.written, text))  # type: ignore[attr-defined]
        return text


class Dict:
    """`dict` in a template, without what hangs on the type."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """`namespace` in a template, without names that Python keeps for itself."""

    def __init__(*args: Any, **named: Any) -> None:  # no name of its own, so that a template may use any
        self, *rest = args
        attributes = dict(*rest, **named)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute that begins with an underscore, such as {name!r}")


def raise_exception(message: str) -> NoReturn:
    """How a template refuses a conversation."""
    raise jinja2.TemplateError(message)


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson`, which in jinja spells what HTML reads otherwise."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache
def compiled(source: str, strict: bool) -> tuple[Environment, jinja2.Template]:
    """The template, in an environment of its own."""
    environment = Environment(strict)
    return environment, environment.from_string(source)


def render(source: str, strict: bool, variables: dict[str, Any] | None) -> dict[str, Any]:
    """`text` and `spans`, those of `{% generation %}`; without variables the `names` of those that it may read."""
    environment, template = compiled(source, strict)
    if variables is None:
        bare = Environment(strict)
        bare.globals.clear()  # which a variable may be called as
        return {"names": sorted(meta.find_undeclared_variables(bare.parse(source)))}
    environment.written, environment.generated = 0, []
    blocks = []
    for block in template.generate(variables):
        blocks.append(block)
        environment.written += len(block)
        if environment.written > CHARACTERS:
            raise jinja2.TemplateError(f"the text has more than {CHARACTERS} characters")
    text = "".join(blocks)
    spans = [(start, start + len(said)) for start, said in environment.generated]
    # In a macro or a {% set %} the block does not know its place.
    placed = all(text.startswith(said, start) for start, said in environment.generated)
    return {"text": text, "spans": spans if placed else None}


def answer(source: str, strict: bool, variables: dict[str, Any] | None) -> dict[str, Any]:
    """What `render` gives, or `error` and `line`."""
    try:
        return render(source, strict, variables)
    except jinja2.TemplateSyntaxError as error:
        return {"error": str(error.message), "line": error.lineno}
    except MemoryError:
        return {"error": "it needs more memory than it may have", "line": None}
    except Exception as error:  # a template can raise whatever Python does
        known = isinstance(error, jinja2.TemplateError)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return {"error": text, "line": lines[-1] if lines else None}


def limit(what: int, most: int) -> None:
    """Sets the soft limit of the system, as far as the hard one lets it."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(seconds: int, size: int) -> None:
    """Answers each line until there are no more. An answer is handed over at once: the next may end the process."""
    with contextlib.suppress(ValueError, OSError):  # macOS refuses it
        limit(resource.RLIMIT_AS, size)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        for variables in request["all"]:
            limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
            reply = json.dumps(answer(request["source"], request["strict"], variables))
            sys.stdout.buffer.write(reply.encode() + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
