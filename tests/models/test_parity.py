"""Against Hugging Face transformers, by the fixtures that `tools/make_fixtures.py` wrote."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import TransformerConfig
from jaxllm.models.block import normalise
from jaxllm.models.heads import head_logits
from jaxllm.models.table import parameter_table
from jaxllm.models.transformer import Transformer
from jaxllm.objectives.token_loss import token_loss

FIXTURES = Path(__file__).parent.parent / "fixtures"

LLAMA = TransformerConfig(
    vocab_size=61,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=10,
    ffn=40,
    tied_embeddings=False,
)
GPT2 = TransformerConfig(
    vocab_size=61,
    width=32,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=8,
    ffn=96,
    max_positions=150,
    norm="layer",
    mlp="gelu",
    positions="learned",
    attention_bias="all",
    mlp_bias=True,
)


def llama_params(weights: dict[str, np.ndarray]) -> Tree:
    """torch keeps a linear map as `[out, in]`, with heads and their elements as one axis."""
    names = {
        "attention_norm/scale": "input_layernorm",
        "attention/query/kernel": "self_attn.q_proj",
        "attention/key/kernel": "self_attn.k_proj",
        "attention/value/kernel": "self_attn.v_proj",
        "attention/output/kernel": "self_attn.o_proj",
        "mlp_norm/scale": "post_attention_layernorm",
        "mlp/gate/kernel": "mlp.gate_proj",
        "mlp/up/kernel": "mlp.up_proj",
        "mlp/down/kernel": "mlp.down_proj",
    }
    flat = {
        f"layers/{ours}": np.stack([weights[f"model.layers.{i}.{theirs}.weight"].T for i in range(LLAMA.layers)])
        for ours, theirs in names.items()
    }
    flat["embedding/tokens"] = weights["model.embed_tokens.weight"]
    flat["final_norm/scale"] = weights["model.norm.weight"]
    flat["head/kernel"] = weights["lm_head.weight"].T
    return shaped(flat, LLAMA)


def gpt2_params(weights: dict[str, np.ndarray]) -> Tree:
    """GPT-2 keeps `[in, out]`, and queries, keys and values side by side."""
    names = {
        "attention_norm/scale": "ln_1.weight",
        "attention_norm/bias": "ln_1.bias",
        "attention/output/kernel": "attn.c_proj.weight",
        "attention/output/bias": "attn.c_proj.bias",
        "mlp_norm/scale": "ln_2.weight",
        "mlp_norm/bias": "ln_2.bias",
        "mlp/up/kernel": "mlp.c_fc.weight",
        "mlp/up/bias": "mlp.c_fc.bias",
        "mlp/down/kernel": "mlp.c_proj.weight",
        "mlp/down/bias": "mlp.c_proj.bias",
    }

    def stack(name: str) -> np.ndarray:
        return np.stack([weights[f"transformer.h.{i}.{name}"] for i in range(GPT2.layers)])

    flat = {f"layers/{ours}": stack(theirs) for ours, theirs in names.items()}
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        parts = np.split(stack(f"attn.c_attn.{theirs}"), 3, axis=-1)
        flat |= {f"layers/attention/{n}/{ours}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
    flat["embedding/tokens"] = weights["transformer.wte.weight"]
    flat["embedding/positions"] = weights["transformer.wpe.weight"]
    flat["final_norm/scale"] = weights["transformer.ln_f.weight"]
    flat["final_norm/bias"] = weights["transformer.ln_f.bias"]
    return shaped(flat, GPT2)


def shaped(flat: dict[str, np.ndarray], config: TransformerConfig) -> Tree:
    table = parameter_table(config)
    assert flat.keys() == table.keys()
    return nest({path: jnp.asarray(flat[path].reshape(leaf.shape)) for path, leaf in table.items()})


CASES = {"llama": (LLAMA, llama_params), "gpt2": (GPT2, gpt2_params)}


@pytest.fixture(params=[(family, seed) for family in CASES for seed in (0, 1)], ids=str, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[TransformerConfig, Tree, dict[str, np.ndarray]]:
    family, seed = request.param
    config, convert = CASES[family]
    with np.load(FIXTURES / f"{family}_{seed}.npz") as file:
        arrays = dict(file)
    weights = {name.removeprefix("weights/"): a for name, a in arrays.items() if name.startswith("weights/")}
    return config, convert(weights), arrays


@jax.jit(static_argnums=0)
def hidden_states(config: TransformerConfig, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens, segments_BT=mask)[0]


def inputs(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Padding is a segment of its own, so that no token sees it."""
    return arrays["tokens"].astype(np.int32), arrays["mask"].astype(np.int32)


def test_hidden_states_after_the_first_block_match(case):
    config, params, arrays = case
    first = replace(config, layers=1)
    short = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    hidden = hidden_states(first, short, *inputs(arrays))
    expected = normalise(config, params["final_norm"], jnp.asarray(arrays["hidden_1"]))
    np.testing.assert_allclose(hidden[arrays["mask"]], expected[arrays["mask"]], atol=1e-4)


def test_logits_match(case):
    config, params, arrays = case
    logits = head_logits(params, hidden_states(config, params, *inputs(arrays)), config)
    np.testing.assert_allclose(logits[arrays["mask"]], arrays["logits"][arrays["mask"]], atol=1e-4)


@jax.jit(static_argnums=0)
def mean_loss_and_gradients(config: TransformerConfig, params: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
    def mean(params: Tree) -> jax.Array:
        total, weight, _ = token_loss(Transformer(config), params, batch, None, chunk=64)
        return total / weight

    return jax.value_and_grad(mean)(params)


def test_loss_and_gradient_norm_match(case):
    config, params, arrays = case
    tokens, mask = inputs(arrays)
    # The reference shifts inside: the label of the next column is this token's target.
    targets = np.pad(arrays["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    batch = {
        "tokens": tokens,
        "targets": np.maximum(targets, 0).astype(np.int32),
        "weights": (targets >= 0).astype(np.float32),
        "segments": mask,
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    }
    loss, gradients = mean_loss_and_gradients(config, params, batch)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in flatten(gradients).values()))
    np.testing.assert_allclose(loss, arrays["loss"], atol=1e-4)
    np.testing.assert_allclose(norm, arrays["gradient_norm"], atol=1e-4)
