"""The frozen dataclasses that describe a run. A recipe in `configs/` builds one; the command line overrides it.

Nothing here imports jax: a configuration is read, checked (`jaxllm/validation.py`) and saved before any
device is touched. The text under each field is its `--help`.
"""

from jaxllm.config.dicts import differences, expected, from_dict, read_dict, to_dict
from jaxllm.config.error import UserError
from jaxllm.config.model import GATED, RopeScaling, TransformerConfig
from jaxllm.config.run import (
    AXES,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "AXES",
    "GATED",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RopeScaling",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "UserError",
    "differences",
    "expected",
    "from_dict",
    "read_dict",
    "to_dict",
]
