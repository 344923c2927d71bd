import contextlib
import struct

import gguf
import numpy as np
import pytest

from jaxllm.config import UserError
from jaxllm.interop.gguf.header import read_header
from jaxllm.interop.gguf.read import open_gguf
from tests.interop.gguf.models import write


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("header") / "m.gguf"
    write(path, "mixtral", "q8_0")
    return path


def test_it_is_what_the_reference_reader_reads(path):
    header, reference = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in header.metadata.items()
    } == fields
    assert list(header.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        shape, kind, data = header.tensors[tensor.name]
        assert (shape, kind) == (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type.name)
        assert data.dtype == tensor.data.dtype
        np.testing.assert_array_equal(data, tensor.data)


def test_another_alignment_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.arange(3, dtype=np.float32))
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = read_header(tmp_path / "m.gguf").tensors
    np.testing.assert_array_equal(tensors["b"].data, np.arange(5, dtype=np.float16))


def test_numbers_are_the_shortest_decimals_of_their_float32(path):
    header = read_header(path)
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] != 1e-6
    assert header.number("llama.attention.layer_norm_rms_epsilon") == 1e-6


@pytest.mark.parametrize("share", np.linspace(0.001, 0.999, 40))
def test_a_file_cut_short_anywhere_is_told_of(path, tmp_path, share):
    content = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: max(8, int(len(content) * share))])
    with pytest.raises(UserError, match=r"'.*/cut\.gguf' (ends after|of) [\d,]+ bytes.*it is damaged; get it again$"):
        read_header(cut)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def metadatum(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def made(tensors: int = 0, entries: int = 0, body: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, entries) + body


def tensor(dims: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"a") -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 2**60


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: it is not a GGUF file"),
        (b"PK\x03\x04 something else", r"is not a GGUF file: it begins with b'PK\\x03\\x04', not b'GGUF'"),
        (b"GG", "is not a GGUF file"),
        (made(version=1), "is of version 1, and versions 2 and 3 are read"),
        (made(version=3 << 24), "is big-endian, and little-endian files are read"),
        (made(tensors=HUGE), f"cannot hold the {HUGE:,} tensors that it says it has"),
        (made(entries=HUGE), f"cannot hold the {HUGE:,} metadata that it says it has"),
        (made(entries=1, body=struct.pack("<Q", HUGE) + bytes(40)), "inside the name of a metadatum"),
        (made(entries=1, body=metadatum(b"k", 8, struct.pack("<Q", HUGE))), "ends after 45 bytes, inside k"),
        (
            made(entries=1, body=metadatum(b"k", 9, struct.pack("<IQ", 0, HUGE))),
            f"cannot hold the {HUGE:,} numbers of k",
        ),
        (made(entries=1, body=metadatum(b"k", 9, struct.pack("<IQ", 8, HUGE))), f"cannot hold the {HUGE:,} texts of k"),
        (made(entries=1, body=metadatum(b"k", 9, struct.pack("<IQ", 9, 1))), "gives 'k' the type 9"),
        (made(entries=1, body=metadatum(b"k", 77, bytes(8))), "gives 'k' the type 77"),
        (made(entries=1, body=metadatum(b"\xff\xfe", 0, b"1")), "has bytes that are no UTF-8"),
        (made(entries=2, body=2 * metadatum(b"k", 0, b"1")), "has the metadata 'k' twice"),
        (made(tensors=1, body=tensor((4,) * 9)), "gives the tensor 'a' 9 dimensions"),
        (made(tensors=1, body=tensor((0, HUGE))), r"has the tensor 'a' of shape \(\d+, 0\), which F32 cannot have"),
        (made(tensors=1, body=tensor((33,), 8) + bytes(99)), r"of shape \(33,\), which Q8_0 cannot have"),
        (made(tensors=1, body=tensor((HUGE, HUGE))), "before the end of the tensor 'a'"),
        (made(tensors=1, body=tensor((4,), offset=HUGE)), "before the end of the tensor 'a'"),
        (made(tensors=2, body=2 * tensor((1,)) + bytes(64)), "has the tensor 'a' twice"),
        (made(entries=1, body=metadatum(b"general.alignment", 4, bytes(4))), "has the alignment 0"),
    ],
)
def test_a_file_that_is_none_is_told_of_at_once(tmp_path, content, told):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        read_header(path)
    assert str(error.value).startswith(f"'{path}'")


def test_a_file_that_is_not_there_is_told_of(tmp_path):
    with pytest.raises(UserError, match=r"cannot read '.*/none\.gguf': No such file or directory"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(UserError, match=r"cannot read '.*': Is a directory"):
        read_header(tmp_path)


def test_random_damage_is_an_error_of_the_user_or_none(path, tmp_path):
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for _ in range(200):
        damaged = content.copy()
        for at in rng.integers(0, 3000, 4):
            damaged[at] = rng.integers(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        with contextlib.suppress(UserError):
            open_gguf(tmp_path / "damaged.gguf")
