import pytest

from jaxllm.config import UserError
from jaxllm.data.document import checked_text


@pytest.mark.parametrize("value", ["a\tb\r\n", "naïve 中文 😀".encode(), "\ufeffmarked", ""])
def test_text_and_utf8_bytes_pass_unchanged(value):
    assert checked_text(value, "here") == (value.decode() if isinstance(value, bytes) else value)


def test_a_text_that_is_null_is_empty():
    assert checked_text(None, "here") == ""


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"ab\xffcd", r"file\.txt: not valid UTF-8 \(at 2: invalid start byte\); convert it"),
        ("ab\ud800", r"file\.txt: not valid UTF-8 \(at 2: surrogates not allowed\)"),
        (b"GIF\x00\x01", r"file\.txt: a NUL character at 3: this is binary data, not text"),
        ("a\0", r"file\.txt: a NUL character at 1"),
        (17, r"file\.txt: expected text, got int 17"),
    ],
)
def test_what_is_not_text_is_named_with_its_place(value, complaint):
    with pytest.raises(UserError, match=complaint):
        checked_text(value, "file.txt")
