import pytest
import tensorflow_datasets as tfds

from jaxllm.config import SourceConfig, UserError
from jaxllm.data.document import Document
from jaxllm.data.sources import open_source
from jaxllm.data.stdlib_corpus.builder import StdlibCorpus
from jaxllm.data.tfds_source import quiet


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A small data set in a folder that TFDS knows: the repository's own builder with other documents."""
    small = [(f"name {i}", f"text {i}\n") for i in range(7)]
    monkeypatch.setattr("jaxllm.data.stdlib_corpus.builder.documents", lambda: iter(small))
    with quiet():
        StdlibCorpus(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def opened(cache, path, **fields):
    return open_source(SourceConfig(kind="tfds", path=path, **fields), cache)


def test_a_prepared_data_set_is_read_by_name_and_index(prepared, cache):
    source = opened(cache, "stdlib_corpus")
    assert len(source) == 7
    assert source[3] == Document("stdlib_corpus/train:3", "text 3\n", named_by_place=True)
    assert opened(cache, "stdlib_corpus", field="name")[5].text == "name 5"


def test_a_target_field_makes_pairs(prepared, cache):
    source = opened(cache, "stdlib_corpus", field="name", target_field="text")
    assert source[3].parts == ("name 3", "text 3\n")
    assert source.fingerprint() != opened(cache, "stdlib_corpus", field="name").fingerprint()
    with pytest.raises(UserError, match=r"no field 'body'; it has name, text; set"):
        opened(cache, "stdlib_corpus", target_field="body")


class SmallChats(tfds.core.GeneratorBasedBuilder):
    """Two conversations, each in two formats."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {
            "messages": tfds.features.Sequence({"role": text, "content": text}),
            "conversations": tfds.features.Sequence({"from": text, "value": text}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(2):
            yield (
                number,
                {
                    "messages": [
                        {"role": "user", "content": "one"},
                        {"role": "assistant", "content": f"zwölf {number}"},
                    ],
                    "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                },
            )


def test_conversations_are_read_whose_texts_are_bytes(tmp_path, cache, monkeypatch):
    with quiet():
        SmallChats(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    source = opened(cache, "small_chats", format="messages")
    assert {source[i].text for i in range(2)} == {"one\nzwölf 0", "one\nzwölf 1"}
    assert opened(cache, "small_chats", format="sharegpt")[1].text == "a\nb"


def test_part_of_a_split_can_be_taken(prepared, cache):
    source = opened(cache, "stdlib_corpus", split="train[2:4]")
    assert [source[i].text for i in range(len(source))] == ["text 2\n", "text 3\n"]


def test_the_fingerprint_follows_the_records_the_split_and_the_field(prepared, cache):
    prints = [
        opened(cache, "stdlib_corpus", **fields).fingerprint()
        for fields in ({}, {}, {"field": "name"}, {"split": "train[:3]"}, {"split": "train[3:]"})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_a_data_set_that_cannot_be_read_by_index_says_how_it_can(prepared, cache):
    info = next(prepared.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"as tfrecord, .*; prepare it again with file_format='array_record'"):
        opened(cache, "stdlib_corpus")


@pytest.mark.parametrize(
    ("path", "fields", "complaint"),
    [
        ("stdlib_corps", {}, "no TFDS data set is named 'stdlib_corps'; the nearest are stdlib_corpus, "),
        (
            "tiny_shakespear",
            {},
            "no TFDS data set is named 'tiny_shakespear'; the nearest are tiny_shakespeare, ",
        ),
        (
            "stdlib_corpus/2.7",
            {},
            "'stdlib_corpus/2.7' cannot be prepared here: .* BuilderConfig 2.7 not found",
        ),
        (
            "stdlib_corpus:9.0.0",
            {},
            "cannot be prepared here: .* cannot be loaded at version 9.0.0, only: 1.0.0",
        ),
        (
            "two words",
            {},
            "'two words' cannot be prepared here: Parsing builder name string two words failed",
        ),
        ("stdlib_corpus", {"split": "tran"}, "has no split 'tran'; it has train$"),
        ("stdlib_corpus", {"field": "body"}, "no field 'body'; it has name, text; set"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(prepared, cache, path, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        opened(cache, path, **fields)


def test_a_data_set_that_cannot_be_prepared_here_says_why(prepared, cache, monkeypatch):
    def offline(self, **_):
        raise ConnectionError("Failed to resolve 'drive.google.com'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(UserError, match="'ag_news_subset' cannot be prepared here: Failed to resolve 'drive"):
        opened(cache, "ag_news_subset")


def test_a_record_that_cannot_be_read_is_named(prepared, cache):
    (file,) = prepared.rglob("*.array_record*")
    content = bytearray(file.read_bytes())
    content[40:90] = b"\xff" * 50
    file.write_bytes(content)
    source = opened(cache, "stdlib_corpus")
    with pytest.raises(UserError, match=r"stdlib_corpus/train:\d cannot be read: .*; prepare the data set again"):
        [source[i] for i in range(len(source))]
