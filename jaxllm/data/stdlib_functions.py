"""The embedded corpus as instruction data: a function's signature and docstring, and its code."""

import ast
import inspect
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from jaxllm.data.cache import key_of
from jaxllm.data.conversations import said
from jaxllm.data.document import Chat, Document
from jaxllm.data.stdlib import StdlibSource

Function = ast.FunctionDef | ast.AsyncFunctionDef


class StdlibFunctions:
    """Each function of the running interpreter's library that has a docstring, in the order of its modules."""

    def __init__(self, root: Path, system: str | None = None):
        self._modules, self._system = StdlibSource(root), system

    def fingerprint(self) -> str:
        return key_of(["functions", self._system, self._modules.fingerprint()])

    @cached_property
    def _functions(self) -> list[Document]:
        modules = (self._modules[i] for i in range(len(self._modules)))
        python = (module for module in modules if module.name.endswith(".py"))
        return [function for module in python for function in _functions_of(module, self._system)]

    def __len__(self) -> int:
        return len(self._functions)

    def __getitem__(self, index: int) -> Document:
        return self._functions[index]


def _functions_of(module: Document, system: str | None) -> Iterator[Document]:
    lines = module.text.splitlines(keepends=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in old strings
        tree = ast.parse(module.text)
    for name, node in _named(tree, ()):
        docstring = ast.get_docstring(node)
        if docstring is None or not docstring.strip():
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        code = "".join(_moved_left(line, node.col_offset) for line in lines[first - 1 : node.end_lineno]).rstrip()
        library = module.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        place = "method" if "." in name else "function"
        question = (
            f"Write the {place} `{name}` of the Python module `{library}`:\n\n"
            f"{_signature(node)}\n\n{inspect.cleandoc(docstring)}"
        )
        said_by = {"system": system, "user": question, "assistant": code}
        chat = Chat([{"role": role, "content": text} for role, text in said_by.items() if text is not None])
        yield Document(f"{module.name}:{node.lineno}", said(chat), named_by_place=True, chat=chat)


def _named(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, Function]]:
    """The functions below `node`, each with its name and those of what it stands in."""
    for child in ast.iter_child_nodes(node):
        names = (*inside, child.name) if isinstance(child, Function | ast.ClassDef) else inside
        if isinstance(child, Function):
            yield ".".join(names), child
        yield from _named(child, names)


def _moved_left(line: str, columns: int) -> str:
    """Without so much of its indentation; lines of strings and comments may have less, where `dedent` fails."""
    return line[min(columns, len(line) - len(line.lstrip(" \t"))) :]


def _signature(node: Function) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}:"
