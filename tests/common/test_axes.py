import dataclasses

from jaxllm.common.axes import LEGEND
from jaxllm.config import TransformerConfig


def test_each_parameter_axis_is_sized_by_a_field_of_the_configuration():
    assert set(LEGEND.values()) <= {field.name for field in dataclasses.fields(TransformerConfig)}
