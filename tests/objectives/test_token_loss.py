"""The loss of each objective against the plain one over all logits."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree
from jaxllm.config import TransformerConfig
from jaxllm.layers.experts import balance_loss
from jaxllm.models.block import Memory
from jaxllm.models.heads import head_logits
from jaxllm.models.transformer import Transformer, decode, encode
from jaxllm.objectives.token_loss import hidden_states, token_loss
from tests.models.small import parameters

DECODER = TransformerConfig(
    vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=24, max_positions=16, init_std=0.3
)
ENCODER = replace(
    DECODER, architecture="encoder", mlp="gelu", positions="learned", head_transform=True, head_bias=True, norm="layer"
)
PAIR = replace(DECODER, architecture="encoder_decoder", positions="relative", logit_scale=0.5)
CONFIGS = {
    "causal": replace(DECODER, tied_embeddings=False, head_bias=True, logit_softcap=3.0),
    "prefix": DECODER,
    "masked": ENCODER,
    "pair": PAIR,
    "experts": replace(DECODER, experts=4, router_loss=0.1),
    "pair of experts": replace(PAIR, experts=4, experts_per_token=1, router_loss=0.1),
}
B, T, S = 2, 12, 9
random = np.random.default_rng(0)


def batch_of(kind: str) -> dict[str, jax.Array]:
    """Rows of two documents and padding."""
    segments = np.where(np.arange(T) < 5, 1, np.where(np.arange(T) < 10, 2, 0))[None].repeat(B, 0)
    batch = {
        "tokens": random.integers(0, 31, (B, T)),
        "targets": random.integers(0, 31, (B, T)),
        "weights": (random.random((B, T)) < 0.6) * (segments > 0) * 1.0,
        "segments": segments,
        "positions": np.tile(np.arange(T) % 5, (B, 1)),
    }
    if kind == "prefix":
        batch["prefix"] = np.arange(T)[None].repeat(B, 0) % 5 < 3
    if kind.startswith("pair"):
        batch["encoder_tokens"] = random.integers(0, 31, (B, S))
        batch["encoder_segments"] = np.where(np.arange(S) < 4, 1, 2)[None].repeat(B, 0)
        batch["encoder_positions"] = np.tile(np.arange(S) % 4, (B, 1))
    types = {"weights": jnp.float32, "prefix": bool}
    return {name: jnp.asarray(array, types.get(name, jnp.int32)) for name, array in batch.items()}


def plain(kind: str, config: TransformerConfig, params: Tree, batch: Tree) -> tuple[jax.Array, jax.Array]:
    """The sum of the likelihoods, and of the balancing losses."""
    model, own = Transformer(config), (batch["tokens"], batch["positions"], batch["segments"])
    routers = []
    if kind == "masked":
        out = encode(model, params, *own)
    elif kind.startswith("pair"):
        made = encode(model, params, *(batch[f"encoder_{name}"] for name in ("tokens", "positions", "segments")))
        out = decode(model, params, *own, memory=Memory(made.hidden, batch["encoder_segments"]))
        routers.append(made.router)
    else:
        out = decode(model, params, *own, prefix_BT=batch.get("prefix"))
    routers.append(out.router)
    likelihoods = jax.nn.log_softmax(head_logits(params, out.hidden, config))
    nll = -jnp.take_along_axis(likelihoods, batch["targets"][..., None], axis=-1)[..., 0]
    total = jnp.sum(batch["weights"] * nll)
    if not config.experts:
        return total, jnp.zeros(())
    return total, config.router_loss * jnp.sum(batch["weights"]) * balance_loss(jnp.concatenate(routers))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_and_its_gradient_are_those_over_all_logits(kind):
    config, batch = CONFIGS[kind], batch_of(kind)
    params = parameters(config)

    def ours(params: Tree) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        total, *rest = token_loss(Transformer(config), params, batch, None, chunk=16)
        return total, tuple(rest)

    def expected(params: Tree) -> tuple[jax.Array, jax.Array]:
        nll, balance = plain(kind, config, params, batch)
        return nll + balance, nll

    both = (jax.jit(jax.value_and_grad(f, has_aux=True))(params) for f in (ours, expected))
    ((total, (weight, metrics)), gradients), ((whole, nll), wanted) = both
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    assert weight == jnp.sum(batch["weights"])
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def routers(config: TransformerConfig, params: Tree, batch: Tree) -> jax.Array | None:
    return hidden_states(Transformer(config), params, batch, None).router


def test_routers_of_both_stacks_of_a_pair_are_balanced_together():
    config = CONFIGS["pair of experts"]
    assert routers(config, parameters(config), batch_of("pair")).shape == (4, 2, 4)
    assert routers(PAIR, parameters(PAIR), batch_of("pair")) is None


def test_padding_takes_no_part_in_balancing():
    config, batch = CONFIGS["experts"], batch_of("experts")
    params = parameters(config)
    before = routers(config, params, batch)
    other = {**batch, "tokens": jnp.where(batch["segments"] == 0, (batch["tokens"] + 7) % 31, batch["tokens"])}
    np.testing.assert_array_equal(routers(config, params, other), before)
