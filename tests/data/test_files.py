import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxllm.config import SourceConfig, UserError
from jaxllm.data.document import BadRow, Document, Source
from jaxllm.data.files import PART, SUFFIXES, find_files
from jaxllm.data.sources import open_source, parse_source


def opened(kind: str, path: Path | str, **fields: str) -> Source:
    return open_source(SourceConfig(kind=kind, path=str(path), **fields), Path("unused"))


def documents(source: Source) -> dict[str, str]:
    return {d.name: d.text for d in (source[i] for i in range(len(source)))}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_parquet(path: Path, columns: dict[str, list], row_group_size: int = 3) -> Path:
    pa.parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


# Which files


def test_a_folder_gives_its_files_of_the_kind_at_any_depth_ordered_by_name(tmp_path):
    files = {
        "b.py": "b",
        "a/c.py": "c",
        "a/d.CPP": "d",
        "notes.txt": "-",
        ".git/x.py": "-",
        "a/.hidden.py": "-",
    }
    assert list(documents(opened("code", write(tmp_path, files))).items()) == [
        ("a/c.py", "c"),
        ("a/d.CPP", "d"),
        ("b.py", "b"),
    ]


def test_a_glob_takes_what_it_matches_and_names_it_from_its_fixed_part(tmp_path):
    write(tmp_path, {"src/x/a.py": "a", "src/b.py": "b", "src/b.inc": "i", "other/c.py": "c"})
    assert documents(opened("code", f"{tmp_path}/src/**/*.py")) == {"x/a.py": "a", "b.py": "b"}
    assert documents(opened("code", f"{tmp_path}/*/b.*")) == {"src/b.py": "b", "src/b.inc": "i"}


def test_a_single_file_is_taken_whatever_its_suffix(tmp_path):
    assert documents(opened("text", write(tmp_path, {"LICENSE": "free"}) / "LICENSE")) == {"LICENSE": "free"}


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("corpsu.txt", r"no such file or folder: '.*corpsu\.txt'; did you mean '.*corpus\.txt'\?"),
        ("far/away", r"no such file or folder: '.*far/away'$"),
        (
            "*.csv",
            r"no file matches '.*\*\.csv'; give a file, a folder or a glob such as 'folder/\*\*/\*\.txt'",
        ),
        ("empty", r"the folder '.*empty' holds no \.txt, \.txt\.gz, \.md file"),
    ],
)
def test_a_path_without_files_says_what_would_do(tmp_path, path, complaint):
    write(tmp_path, {"corpus.txt": "x"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=complaint):
        find_files("text", str(tmp_path / path))


def test_a_source_of_files_needs_a_path():
    with pytest.raises(UserError, match="kind 'jsonl' needs a path"):
        open_source(SourceConfig(kind="jsonl"), Path("unused"))


# What identifies them


def test_the_fingerprint_follows_content_names_and_field_but_not_the_place(tmp_path):
    first = write(tmp_path / "first", {"a.jsonl": '{"t": "1"}', "b.jsonl": '{"t": "2"}'})
    same = write(tmp_path / "same", {"a.jsonl": '{"t": "1"}', "b.jsonl": '{"t": "2"}'})
    changed = write(tmp_path / "changed", {"a.jsonl": '{"t": "1"}', "b.jsonl": '{"t": "3"}'})
    renamed = write(tmp_path / "renamed", {"a.jsonl": '{"t": "1"}', "c.jsonl": '{"t": "2"}'})
    prints = [opened("jsonl", p, field="t").fingerprint() for p in (first, same, changed, renamed)]
    prints.append(opened("jsonl", first, field="u").fingerprint())
    prints.append(opened("text", f"{first}/*", field="t").fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


# Plain text


@pytest.mark.parametrize(("kind", "line"), [("text", "a line of text\n"), ("jsonl", '{"text": "a line"}\n')])
def test_a_file_that_is_cut_short_while_it_is_read_is_named(tmp_path, kind, line):
    path = write(tmp_path, {f"big.{kind}": 20_000 * line}) / f"big.{kind}"
    source = opened(kind, path)
    assert source[0].text.startswith("a line")
    path.write_text(line)
    with pytest.raises(UserError, match=r"big\.\w+' has changed while it was read; run the same command again"):
        _ = source[len(source) - 1]


def test_line_ends_and_byte_order_marks_are_kept(tmp_path):
    text = "\ufeffone\r\ntwo\rthree\n\n"
    assert documents(opened("text", write(tmp_path, {"a.txt": text}))) == {"a.txt": text}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_large_text_is_cut_at_blank_lines_and_loses_nothing(tmp_path, end):
    text = "".join(f"paragraph {i} " + f"word{end}" * 50 + end for i in range(1000))
    parts = documents(opened("text", write(tmp_path, {"big.txt": text, "small.txt": "x"})))
    small = parts.pop("small.txt")
    assert small == "x"
    assert list(parts) == [f"big.txt#{i}" for i in range(len(parts))]
    assert len(parts) >= len(text) / PART
    assert "".join(parts.values()) == text
    assert all(p.endswith(2 * end) and len(p.encode()) <= PART for p in parts.values())


@pytest.mark.parametrize("unit", ["line of text\n", "中文", "a😀"])
def test_a_large_text_without_blank_lines_is_cut_at_lines_or_characters(tmp_path, unit):
    text = unit * (2 * PART // len(unit.encode()) + 5)
    parts = documents(opened("text", write(tmp_path, {"big.txt": text})))
    assert len(parts) == 3
    assert "".join(parts.values()) == text


def test_parts_after_a_change_of_a_large_text_are_those_from_before(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * (i * 37 % 90) + "\n\n" for i in range(4000)]

    def parts(name: str, paragraphs: list[str]) -> set[str]:
        return set(documents(opened("text", write(tmp_path, {name: "".join(paragraphs)}) / name)).values())

    before = parts("before.txt", paragraphs)
    assert len(before) > 15
    assert len(before - parts("longer.txt", ["put before\n\n", *paragraphs])) <= 3
    assert len(before - parts("shorter.txt", paragraphs[:1000] + paragraphs[1010:])) <= 4


def test_a_line_a_row_and_a_part_are_named_by_their_place_and_a_file_is_not(tmp_path):
    write(tmp_path, {"a.jsonl": '{"text": "a"}', "a.txt": "a", "b.txt": "b\n\n" * PART, "a.py": "a"})
    write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    named = {d.name: d.named_by_place for kind in SUFFIXES for d in opened(kind, tmp_path)}
    parts = {name for name in named if name.startswith("b.txt#")}
    assert len(parts) > 2
    assert {name for name, by_place in named.items() if by_place} == {"a.jsonl:1", "a.parquet:0", *parts}
    assert {name for name, by_place in named.items() if not by_place} == {"a.txt", "a.py"}


def test_source_code_is_never_cut(tmp_path):
    text = "x = 1\n\n" * PART
    assert documents(opened("code", write(tmp_path, {"big.py": text}))) == {"big.py": text}


def test_text_that_is_not_utf8_names_the_file_and_the_part(tmp_path):
    write(tmp_path, {"bad.txt": b"x\n" * PART + b"\xfe"})
    source = opened("text", tmp_path)
    with pytest.raises(UserError, match=rf"bad\.txt \(after byte {2 * PART}\): not valid UTF-8"):
        documents(source)


# JSON lines


def test_each_line_is_a_document_named_by_its_number(tmp_path):
    text = '{"text": "one"}\n\n  \n{"text": "tw\\u00f6"}\r\n{"n": 3, "text": ""}'
    expected = {"a.jsonl:1": "one", "a.jsonl:4": "twö", "a.jsonl:5": ""}
    assert documents(opened("jsonl", write(tmp_path, {"a.jsonl": text}))) == expected
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert list(documents(opened("jsonl", packed)).values()) == list(expected.values())


def test_lines_are_read_at_random_over_several_files(tmp_path):
    write(
        tmp_path,
        {f"{f}.jsonl": "".join(json.dumps({"text": f"{f}{i}"}) + "\n" for i in range(5)) for f in "abc"},
    )
    source = opened("jsonl", tmp_path)
    assert len(source) == 15
    assert [source[i].text for i in (14, 0, 7, 5, 4, 9, 10)] == ["c4", "a0", "b2", "b0", "a4", "b4", "c0"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_target_field_makes_pairs(tmp_path, kind):
    records = {"x": ["a", "b"], "y": ["A", None], "z": ["-", "-"]}
    if kind == "jsonl":
        lines = (json.dumps({name: values[i] for name, values in records.items()}) for i in range(2))
        path = write(tmp_path, {"a.jsonl": "\n".join(lines)}) / "a.jsonl"
    else:
        path = write_parquet(tmp_path / "a.parquet", records)
    source = opened(kind, path, field="x", target_field="y")
    assert [source[i].parts for i in range(2)] == [("a", "A"), ("b", "")]
    prints = {opened(kind, path, field="x", **f).fingerprint() for f in ({}, {"target_field": "y"})}
    assert len(prints) == 2
    with pytest.raises(UserError, match=rf"a\.{kind}.*: no field 'w'; it has x, y, z; set .*\.N\.target_field"):
        documents(opened(kind, path, field="x", target_field="w"))


def test_an_empty_file_has_no_lines(tmp_path):
    assert documents(opened("jsonl", write(tmp_path, {"a.jsonl": "", "b.jsonl": '{"text": "b"}'}))) == {
        "b.jsonl:1": "b"
    }


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', r"a\.jsonl:2: not JSON: Expecting ',' delimiter at column 13"),
        (b"plain words", r"a\.jsonl:2: not JSON: Expecting value at column 1"),
        (b'{"text": "a", "id": ' + b"9" * 5000 + b"}", r"a\.jsonl:2: JSON that cannot be read: Exceeds the limit"),
        (b"[" * 200_000, r"a\.jsonl:2: JSON that cannot be read: .*recursion"),
        (
            b'["text"]',
            r"a\.jsonl:2: expected an object with named fields, got \['text'\]; jq -c '\.\[\]' FILE makes lines",
        ),
        (b"[", r"a\.jsonl:2: not JSON: Expecting value at column 2; jq -c"),
        (
            b'{"body": "a", "id": 1}',
            r"a\.jsonl:2: no field 'text'; it has body, id; set data\.sources\.N\.field \(--field",
        ),
        (b'{"text": 5}', r"a\.jsonl:2, field 'text': expected text, got int 5"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2, field 'text': not valid UTF-8"),
        (b'{"text": "\\u0000"}', r"a\.jsonl:2, field 'text': a NUL character"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not valid UTF-8 \(at 10"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    source = opened("jsonl", write(tmp_path, {"a.jsonl": b'{"text": "fine"}\n' + line + b"\n"}))
    assert source[0].text == "fine"
    with pytest.raises(UserError, match=complaint):
        source[1]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    assert opened("jsonl", write(tmp_path, {"a.jsonl": b'\xef\xbb\xbf{"text": "a"}\n'}))[0].text == "a"


def test_a_gz_is_unpacked_whatever_the_case_of_its_name(tmp_path):
    assert documents(opened("text", write(tmp_path, {"A.TXT.GZ": gzip.compress(b"text")}))) == {"A.TXT.GZ": "text"}


def test_a_damaged_gz_is_named(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    source = opened("jsonl", write(tmp_path, {"a.jsonl.gz": whole[: len(whole) // 2]}))
    with pytest.raises(UserError, match=r"cannot read '.*a\.jsonl\.gz'"):
        len(source)


# Parquet


def test_parquet_rows_are_read_at_random_over_row_groups_and_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": list(range(8)), "body": [f"a{i}" for i in range(8)]})
    write_parquet(tmp_path / "b.parquet", {"body": [f"b{i}" for i in range(4)]})
    source = opened("parquet", tmp_path, field="body")
    assert len(source) == 12
    assert source[7] == Document("a.parquet:7", "a7", named_by_place=True)
    assert [source[i].name for i in (11, 0, 8, 3)] == [
        "b.parquet:3",
        "a.parquet:0",
        "b.parquet:0",
        "a.parquet:3",
    ]
    assert list(documents(source).values()) == [f"a{i}" for i in range(8)] + [f"b{i}" for i in range(4)]


def test_a_parquet_file_without_rows_is_empty(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert len(opened("parquet", tmp_path)) == 0


def test_a_missing_parquet_column_names_those_that_exist(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"id": [1], "body": ["b"]})
    with pytest.raises(UserError, match=r"a\.parquet: no field 'text'; it has id, body"):
        len(opened("parquet", path))


def test_a_parquet_value_that_is_not_text_is_named_and_null_is_empty(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": [5]})
    with pytest.raises(UserError, match=r"a\.parquet, row 0, field 'text': expected text, got int"):
        documents(opened("parquet", path))
    path = write_parquet(tmp_path / "b.parquet", {"text": ["a", None]})
    assert documents(opened("parquet", path)) == {"b.parquet:0": "a", "b.parquet:1": ""}


def test_a_parquet_column_that_nobody_reads_may_hold_what_cannot_be_read(tmp_path):
    far = pa.array([2**60], pa.timestamp("ms"))
    columns = {"prompt": ["a"], "completion": ["b"], "when": far, "fine": pa.array([1], pa.timestamp("ns"))}
    path = write_parquet(tmp_path / "a.parquet", columns)
    source = opened("parquet", path, format="auto")
    assert [message["content"] for message in source[0].chat.messages] == ["a", "b"]
    templates = {"prompt": "{{ prompt }} {{ prompt }}", "completion": "{{ completion }}"}
    source = opened("parquet", path, format="prompt_completion", **templates)
    assert [message["content"] for message in source[0].chat.messages] == ["a a", "b"]
    for fields in ({"prompt": "{{ when }}", "completion": "b"}, {"task_field": "when"}):
        with pytest.raises(BadRow, match=r"a\.parquet, row 0, field 'when': cannot be read"):
            opened("parquet", path, format="prompt_completion", **fields)[0]


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": [f"some text {i}" * 40 for i in range(50)]})
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"cannot read '.*a\.parquet'"):
        len(opened("parquet", path))
    path.write_bytes(content[:10] + b"\xff" * 400 + content[410:])
    with pytest.raises(UserError, match=r"cannot read '.*a\.parquet'"):
        documents(opened("parquet", path))


# Sources on a command line


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("stdlib", "stdlib", None),
        ("code:src/**", "code", "src/**"),
        ("tfds:wiki40b/en:1.0.0", "tfds", "wiki40b/en:1.0.0"),
        ("data/x.jsonl.gz", "jsonl", "data/x.jsonl.gz"),
        ("x.parquet", "parquet", "x.parquet"),
        ("C:odd.txt", "text", "C:odd.txt"),
    ],
)
def test_a_source_can_be_written_in_one_word(text, kind, path):
    assert parse_source(text, "body") == SourceConfig(kind=kind, path=path, field="body")


def test_a_word_of_no_known_kind_lists_the_kinds():
    with pytest.raises(
        UserError, match="source 'folder': give it as KIND:PATH, where KIND is one of stdlib, tfds, text"
    ):
        parse_source("folder")
