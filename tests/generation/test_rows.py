import numpy as np
import pytest

from jaxllm.generation.rows import packed


@pytest.mark.parametrize(("tokens", "places"), [(16, 64), (40, 128), (64, 64), (70, 256), (120, 128)])
def test_rows_are_as_long_as_texts_fill_them(tokens, places):
    """40 tokens would be alone in a row of 64, and three of them fill one of 128."""
    rows = packed(np.full(100, tokens), 384)
    assert rows.keys() == {places}
    assert sorted(text for row in rows[places] for text in row) == list(range(100))
    assert all(len(row) * tokens <= places for row in rows[places])
