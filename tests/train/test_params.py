"""Which bases a run may begin with."""

from dataclasses import replace

import pytest

from jaxllm.config import RunConfig, TransformerConfig, TuningConfig, UserError
from jaxllm.train.params import check_base

MODEL = TransformerConfig(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=64)
LEARNED = replace(MODEL, positions="learned")


def check(model, base, **tuning):
    check_base(RunConfig(model=model, base="base"), RunConfig(model=base, tuning=TuningConfig(**tuning)))


def test_what_changes_no_parameter_may_be_another():
    check(replace(MODEL, max_positions=128, dropout=0.1), MODEL)
    check(replace(LEARNED, dropout=0.1), LEARNED)


@pytest.mark.parametrize(
    ("model", "base", "complaint"),
    [
        (replace(MODEL, ffn=64), MODEL, "its model is another one than that of the run: ffn: 48 -> 64"),
        (replace(LEARNED, max_positions=128), LEARNED, "than that of the run: max_positions: 64 -> 128"),
    ],
)
def test_another_shape_is_refused(model, base, complaint):
    with pytest.raises(UserError, match=complaint):
        check(model, base)


@pytest.mark.parametrize("method", ["prompt", "prefix", "hybrid"])
def test_virtual_tokens_are_no_part_of_a_base(method):
    with pytest.raises(UserError, match="has virtual tokens or gates, which cannot be a part of a base"):
        check(MODEL, MODEL, method=method)
