"""Cases of `bad_inputs.py` with models of others: `hf` is a good Hugging Face folder, `good.gguf` a good GGUF file."""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Case = tuple[str, Callable[[], Sequence[str]]]
"""What is wrong, and a function that arranges it in the current folder and returns the words after `jaxllm`."""

IMPORT = ("import", "hf", "ours")
INDEX = "hf/model.safetensors.index.json"
IQ2_XXS = 16
"""A type of GGUF's tensors that is not read."""


def changed(path: str, change: Callable[[bytes], bytes], *argv: str) -> Callable[[], Sequence[str]]:
    """Such words, where a file has other bytes."""

    def arrange() -> Sequence[str]:
        Path(path).write_bytes(change(Path(path).read_bytes()))
        return argv

    return arrange


def weights(change: Callable[[bytes], bytes]) -> Callable[[], Sequence[str]]:
    """An import, where the safetensors file has other bytes."""
    return changed("hf/model.safetensors", change, *IMPORT)


def gguf(change: Callable[[bytes], bytes]) -> Callable[[], Sequence[str]]:
    """An import, where the GGUF file has other bytes."""
    return changed("good.gguf", change, "import", "good.gguf", "ours")


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[], Sequence[str]]:
    """An import, where the header of the safetensors file says something else."""

    def other(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + size])
        change(values)
        text = json.dumps(values).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return weights(other)


def values(path: str, *argv: str, **changes: Any) -> Callable[[], Sequence[str]]:
    """Such words, where a file of JSON has other values, or lacks those that are none."""

    def arrange() -> Sequence[str]:
        found = json.loads(Path(path).read_bytes()) | changes
        Path(path).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
        return argv or IMPORT

    return arrange


def index(where: Callable[[str], str]) -> Callable[[], Sequence[str]]:
    """An import of a model with an index, which gives each tensor's file by its name."""

    def arrange() -> Sequence[str]:
        whole = Path("hf/model.safetensors")
        content = whole.read_bytes()
        names = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        whole.rename("hf/model-00001-of-00001.safetensors")
        Path(INDEX).write_text(json.dumps({"weight_map": {n: where(n) for n in names if n != "__metadata__"}}))
        return IMPORT

    return arrange


def without(*names: str, argv: Sequence[str] = IMPORT) -> Callable[[], Sequence[str]]:
    """Such words, where files are gone."""

    def arrange() -> Sequence[str]:
        for name in names:
            Path(name).unlink()
        return argv

    return arrange


def pickled() -> Sequence[str]:
    """Weights in a pickle, which would make a file if it were opened."""
    Path("hf/model.safetensors").unlink()
    Path("hf/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    return IMPORT


def quantised(content: bytes) -> bytes:
    """A GGUF file with a tensor of a type that is not read: two axes, in blocks of 256."""
    name = b"token_embd.weight"
    at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    info = struct.pack("<IQQI", 2, 256, 20, IQ2_XXS)
    return content[:at] + info + content[at + len(info) :]


def template(source: str) -> Callable[[], Sequence[str]]:
    """A conversation with the run, whose chat template is this one."""

    def arrange() -> Sequence[str]:
        Path("run/chat_template.jinja").write_text(source)
        return "chat", "run", "--message", "hello"

    return arrange


def model_cases() -> Iterator[Case]:
    """Import, export, conversation and embedding."""
    yield "truncated safetensors", weights(lambda content: content[:-100])
    yield "safetensors cut in its header", weights(lambda content: content[:50])
    yield "safetensors header of 2^60 bytes", weights(lambda content: struct.pack("<Q", 2**60) + content[8:])
    yield "empty safetensors", weights(lambda content: b"")
    yield "tensor that overlaps another", header(lambda h: h["model.norm.weight"].update(data_offsets=[0, 64]))
    yield "tensor of an unknown type", header(lambda h: h["model.norm.weight"].update(dtype="F4"))
    yield "tensor that is missing", header(lambda h: h.update({"norm": h.pop("model.norm.weight")}))
    yield "tensor of another shape", values("hf/config.json", hidden_size=32)
    yield "index that names a wrong file", index(lambda name: "model-00002-of-00002.safetensors")
    yield "index that leads out of the folder", index(lambda name: "../hf/model-00001-of-00001.safetensors")
    yield "index with an absolute path", index(lambda name: "/etc/passwd.safetensors")
    yield "weights in a pickle", pickled
    yield "folder without weights", without("hf/model.safetensors")
    yield "folder without config.json", without("hf/config.json")
    yield "unknown architecture", values("hf/config.json", model_type="mamba", architectures=["MambaForCausalLM"])
    yield "config.json without a size", values("hf/config.json", num_hidden_layers=None)
    yield "config.json with no heads", values("hf/config.json", num_attention_heads=0)
    yield "config.json with a billion layers", values("hf/config.json", num_hidden_layers=10**9)
    yield "config.json with a word for a number", values("hf/config.json", rope_theta="large")
    yield "config.json with a word for an object", values("hf/config.json", rope_scaling="dynamic")
    yield "setting that no model here has", values("hf/config.json", hidden_act="selu")
    yield "model without a tokenizer", without("hf/tokenizer.json", "hf/tokenizer.model")
    yield "model folder that is there", lambda: ["import", "hf", "run"]
    yield "GGUF file in an unknown quantisation", gguf(quantised)
    yield "truncated GGUF file", gguf(lambda content: content[:-100])
    yield "GGUF file cut in its metadata", gguf(lambda content: content[:300])
    yield "file that is no GGUF", gguf(lambda content: b"GGML" + content[4:])
    yield "export as an unknown family", lambda: ["export", "run", "out", "--family", "mamba"]
    yield "export of bfloat16 as GGUF", lambda: ["export", "run", "out.gguf", "--dtype", "bfloat16"]
    yield "template that reaches for Python", template("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    yield (
        "template that reaches for the system",
        template("{{ cycler.__init__.__globals__.os.getcwd() }}"),
    )
    yield (
        "template without end",
        template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
    )
    yield "template that is not Jinja", template("{% for %}")
    yield "conversation without a template", lambda: ["chat", "run", "--message", "hello"]
    yield "embedding with a decoder", lambda: ["embed", "run", "texts/0.txt"]
    yield "embedding into another kind of file", lambda: ["embed", "run", "texts/0.txt", "--out", "out.csv"]
