"""The frozen dataclasses that describe a run. A recipe in `configs/` builds one; the command line overrides it.

Nothing here imports jax: a configuration is read, checked (`jaxllm/validation.py`) and saved before any
device is touched. The text under each field is its `--help`.
"""

from jaxllm.config.data import (
    BUILT_IN_TEMPLATES,
    OBJECTIVES_OF,
    PUBLISHED_NOISE,
    DataConfig,
    MixtureConfig,
    ObjectiveConfig,
    SourceConfig,
    TokenizerConfig,
)
from jaxllm.config.data_mistakes import data_mistakes, gives_conversations
from jaxllm.config.dicts import differences, expected, from_dict, read_dict, to_dict
from jaxllm.config.error import UserError
from jaxllm.config.model import GATED, RopeScaling, TransformerConfig
from jaxllm.config.run import (
    AXES,
    CheckpointConfig,
    EvalConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from jaxllm.config.tuning import AdaptiveConfig, LoraConfig, PromptConfig, RankConfig, TuningConfig

__all__ = [
    "AXES",
    "BUILT_IN_TEMPLATES",
    "GATED",
    "OBJECTIVES_OF",
    "PUBLISHED_NOISE",
    "AdaptiveConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "LoraConfig",
    "MeshConfig",
    "MixtureConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PromptConfig",
    "RankConfig",
    "RopeScaling",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "TuningConfig",
    "UserError",
    "data_mistakes",
    "differences",
    "expected",
    "from_dict",
    "gives_conversations",
    "read_dict",
    "to_dict",
]
