import ast
import sys

import pytest

from jaxllm.config import SourceConfig, UserError
from jaxllm.data.sources import open_source
from jaxllm.data.stdlib_corpus import documents as library


@pytest.fixture
def small_library(monkeypatch):
    """The interpreter's own library takes a second to prepare; most tests do with five modules of it."""
    whole = dict(library.documents())
    names = ["abc.py", "json/decoder.py", "this.py", "pydoc_data/topics/lambda", "antigravity.py"]
    small = {name: whole[name] for name in sorted(names)}
    monkeypatch.setattr(library, "documents", lambda: iter(small.items()))
    monkeypatch.setattr("jaxllm.data.stdlib_corpus.builder.documents", lambda: iter(small.items()))
    return small


def test_the_library_is_modules_without_tests_and_the_reference_as_prose():
    found = dict(library.documents())
    assert {"argparse.py", "asyncio/tasks.py", "unittest/mock.py", "pydoc_data/topics/lambda"} <= set(found)
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(name.split("/")) for name in found)
    assert not any(name.startswith("_sysconfigdata") for name in found)
    assert "pydoc_data/topics.py" not in found
    assert found["pydoc_data/topics/lambda"].startswith("Lambdas\n*******\n")
    assert all("\0" not in text for text in found.values())
    assert sum(len(text.encode()) for text in found.values()) > 9e6
    ast.parse(found["argparse.py"])


def test_the_order_and_the_digest_of_the_library_do_not_change_between_calls():
    assert [name for name, _ in library.documents()] == [name for name, _ in library.documents()]
    assert library.digest() == library.digest()


def test_it_is_prepared_as_array_record_without_tensorflow_and_read_by_index(small_library, cache, capfd):
    source = open_source(SourceConfig(), cache)
    assert not cache.exists()  # opening alone writes nothing
    assert {d.name: d.text for d in (source[i] for i in range(len(source)))} == small_library
    assert source[2].name == list(small_library)[2]
    files = list(cache.rglob("*.array_record*"))
    assert len(files) == 1
    assert f"cpython-{'.'.join(map(str, sys.version_info[:3]))}" in str(files[0])
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_it_is_prepared_once(small_library, cache):
    len(open_source(SourceConfig(), cache))
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert len(open_source(SourceConfig(), cache)) == len(small_library)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"} == before


def test_another_library_is_prepared_apart(small_library, cache):
    first = open_source(SourceConfig(), cache)
    len(first)
    small_library["abc.py"] += "# changed\n"
    second = open_source(SourceConfig(), cache)
    assert second[0].text.endswith("# changed\n") or second[1].text.endswith("# changed\n")
    assert first.fingerprint() != second.fingerprint()
    assert len([p for p in (cache / "stdlib").iterdir() if p.is_dir()]) == 2


def test_damaged_records_are_found(small_library, cache):
    len(open_source(SourceConfig(), cache))
    (record,) = cache.rglob("*.array_record*")
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"the data cache '.*stdlib/\w+' is damaged: .*array_record.* delete that"):
        len(open_source(SourceConfig(), cache))


def test_a_writer_that_fails_in_its_own_way_is_reported_as_a_cache_that_cannot_be_written(
    small_library, cache, monkeypatch
):
    from jaxllm.data.stdlib_corpus.builder import StdlibCorpus

    def fail(self):
        raise RuntimeError("array_record: no space left")

    monkeypatch.setattr(StdlibCorpus, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"cannot write the data cache .* no space left"):
        len(open_source(SourceConfig(), cache))
    assert not [p for p in (cache / "stdlib").iterdir() if p.is_dir()]
