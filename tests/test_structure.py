"""The rules of the code base that no other test would notice broken."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxllm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxllm"
FILES = {str(path.relative_to(ROOT)): path for path in sorted(PACKAGE.rglob("*.py"))}

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "jaxllm", "configs", "launch", "tests", "tools"}

ORDER = [
    *("config", "common", "quantization", "layers", "models", "sharding", "validation", "peft", "interop", "data"),
    *("objectives", "train", "generation", "alignment", "evaluation", "curation", "agents", "scaling", "planning"),
    *("serving", "cli"),
]
"""A part of the package may import itself and those before it; `jaxllm/__init__.py` comes before all."""

WITHOUT_JAX = [
    *("jaxllm", "jaxllm.config", "jaxllm.validation", "jaxllm.models.presets", "jaxllm.models.summary"),
    *("jaxllm.generation.config", "jaxllm.generation.recommended", "jaxllm.cli.main", "jaxllm.cli.recipe"),
    *(f"jaxllm.cli.{command}" for command in ("train", "generate", "chat", "embed", "import_model", "export_model")),
    *(f"jaxllm.cli.{command}" for command in ("progress", "data", "tokenizer", "model", "plan", "eval")),
    *(f"jaxllm.cli.{command}" for command in ("adapter", "adapter_runs", "model_folders")),
    *("jaxllm.planning.chips", "jaxllm.planning.topology"),
    *(f"configs.{path.parent.name}.{path.stem}" for path in sorted((ROOT / "configs").glob("*/*.py"))),
]


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def imported(name: str) -> Iterator[str]:
    """Modules that a file imports, also inside functions."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> int:
    """The place of a module of the package in `ORDER`."""
    names = module.split(".")
    return ORDER.index(names[1]) if len(names) > 1 and names[1] in ORDER else -1


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what users keep beside the files is their own")
def test_nothing_else_lies_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {name.partition("/")[0] for name in listed.splitlines()}
    assert {name for name in there if not name.startswith(".")} == TOP_LEVEL


def test_every_part_of_the_package_has_its_place_in_the_order():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("name", FILES)
def test_imports_flow_one_way(name):
    own = ".".join(Path(name).with_suffix("").parts)
    later = [m for m in imported(name) if m.split(".")[0] == "jaxllm" and part(m) > part(own)]
    assert later == []


def test_the_package_explains_the_order_that_is_enforced():
    text = " ".join(jaxllm.__doc__.split())
    named = text.split("way: ")[1].split(".")[0].split(", ")
    assert named == [part for part in ORDER if part in named]


def test_one_file_alone_meets_the_checkpoint_library():
    users = [name for name in FILES if any(m.split(".")[0] == "orbax" for m in imported(name))]
    assert users == ["jaxllm/train/checkpoint.py"]


def test_one_file_alone_makes_meshes():
    makers = ("jax.make_mesh", "Mesh", "AbstractMesh", "jax.sharding.Mesh", "jax.sharding.AbstractMesh")

    def makes(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) in makers

    assert [name for name in FILES if any(map(makes, ast.walk(tree(name))))] == ["jaxllm/sharding/mesh.py"]


@pytest.mark.parametrize("folder", ["jaxllm", "configs", "tests", "tools"])
def test_files_are_short_enough_to_read(folder):
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("name", FILES)
def test_modules_classes_and_functions_of_the_public_face_are_explained(name):
    module = tree(name)
    public = [
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert public == []
    assert ast.get_docstring(module), "the module has no docstring"


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_what_is_needed_before_a_device_does_not_import_jax(module):
    heavy = "{'jax', 'flax', 'optax', 'numpy', 'tensorflow_datasets'}"
    body = f"import sys, {module}; print(*{heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.split() == []


def test_importing_the_whole_package_touches_no_device():
    modules = [".".join(Path(name).with_suffix("").parts).removesuffix(".__init__") for name in FILES]
    body = (
        f"import importlib\nfor m in {modules}: importlib.import_module(m)\n"
        "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", body], check=True, cwd=ROOT, timeout=120)


def test_all_is_printed_on_plain_consoles():
    """Names of users' tasks and files are no markup."""
    calls = [(name, node.func) for name in FILES for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    makers = {name for name, called in calls if getattr(called, "id", getattr(called, "attr", None)) == "Console"}
    assert makers == {"jaxllm/common/console.py"}
