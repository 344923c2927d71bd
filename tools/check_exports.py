"""Hold what is exported, of every family, against transformers.

    pip install -e .[bench] && python tools/check_exports.py

The configurations are those of the tests (`tests/interop/configurations.py`), each in small and with random parameters,
biases and norms too. Each is written as a Hugging Face folder, as the family that it stands for and as the one that
`jaxllm export` chooses by itself, and opened by transformers. Prints a line for each; exits with 1 if any differs.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from jaxllm.common.trees import Tree, flatten, map_with_path
from jaxllm.config import TransformerConfig
from jaxllm.interop.convert import choose_family, exported
from jaxllm.interop.families import FAMILIES, Family
from jaxllm.interop.huggingface import write_folder
from jaxllm.interop.verify import Verified, verify
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import initial
from tests.interop.configurations import CONFIGS


def small(config: TransformerConfig) -> TransformerConfig:
    """The same in all but sizes; windows and scalings begin within the texts that are compared."""
    heads = 4
    head_dim = 8 if config.head_dim * config.heads == config.width else 12
    scaling = config.rope_scaling
    if scaling.kind in ("llama3", "yarn"):
        scaling = replace(scaling, original_positions=16)
    return replace(
        config,
        vocab_size=61,
        width=heads * 8,
        layers=config.global_every + 1 if config.global_every else 2,
        encoder_layers=3 if config.architecture == "encoder_decoder" else None,
        heads=heads,
        kv_heads=heads if config.kv_heads == config.heads else 2,
        head_dim=head_dim,
        ffn=40,
        max_positions=64,
        experts=min(config.experts, 4),
        rope_theta=100.0 if config.positions == "rope" else config.rope_theta,
        rope_scaling=scaling,
        sliding_window=config.sliding_window and 7,
        relative_distance=20 if config.positions == "relative" else config.relative_distance,
        logit_scale=1.0 if config.logit_scale == 1.0 else (heads * 8) ** -0.5,
        start_token=0 if config.architecture == "encoder_decoder" else None,
    )


def drawn(config: TransformerConfig) -> Tree:
    """Parameters of which none is where it starts, and which make sharp choices."""
    random = np.random.default_rng(0)

    def moved(path: str, leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf) + 0.3 * random.standard_normal(leaf.shape).astype(np.float32)

    return map_with_path(moved, initial(jax.random.key(0), parameter_table(config)))


def checked(config: TransformerConfig, family: Family, folder: Path) -> Verified:
    """How far transformers is from us, given what is written."""
    values, params = {**family.write(config), "model_type": family.model_type}, drawn(config)
    write_folder(folder, values, exported(config, family, flatten(params), "float32"), {})
    return verify(folder, config, params)


def main() -> int:
    differ = 0
    for name, configs in CONFIGS.items():
        for number, config in enumerate(map(small, configs)):
            for family in {f.model_type: f for f in (FAMILIES[name], choose_family(config, None))}.values():
                with tempfile.TemporaryDirectory() as temporary:
                    verified = checked(config, family, Path(temporary, "model"))
                differ += not verified.is_sound(is_rounded=False)
                print(f"{name} {number} as {family.model_type}: {verified.theirs}", flush=True)
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())
