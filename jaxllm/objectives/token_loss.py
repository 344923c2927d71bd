"""The prediction of tokens: of the next one, of masked ones, or of what a decoder shall write."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxllm.common.trees import Tree
from jaxllm.layers.experts import balance_loss
from jaxllm.models.block import Memory
from jaxllm.models.heads import head_input, head_kernel
from jaxllm.models.transformer import Output, Transformer, decode, encode
from jaxllm.objectives.cross_entropy import cross_entropy


def token_loss(
    model: Transformer,
    params: Tree,
    batch: Mapping[str, jax.Array],
    dropout_key: jax.Array | None,
    *,
    chunk: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The loss of a batch of `tokens`, `targets`, `weights`, `segments` and `positions`, each `[B, T]`.

    Whatever the objective is, it is in the batch: `prefix` marks what a decoder sees in both directions, and an
    encoder-decoder has `encoder_tokens`, `encoder_segments` and `encoder_positions` besides. With experts the loss that
    balances them is added for every weighted token.

    Returns:
        `(loss_sum, weight_sum, metrics)` as `cross_entropy` does.
    """
    config = model.config
    owners = {name for name in ("head", *(("embedding",) if config.tied_embeddings else ())) if name in params}
    # Gathered once, for the lookup too where it is tied, so that its gradient is scattered once.
    params = {**params, **{owner: model.at_use(params[owner]) for owner in owners}}
    out = hidden_states(model, params, batch, dropout_key)
    with jax.named_scope("loss"):
        kernel, axes = head_kernel(params, config)
        total, weight, metrics = cross_entropy(
            head_input(params, out.hidden, config),
            kernel,
            batch["targets"],
            batch["weights"],
            axes=axes,
            bias_V=params["head"]["bias"] if config.head_bias else None,
            chunk=chunk,
            z_loss=z_loss,
            softcap=config.logit_softcap,
        )
        if out.router is not None:
            total += config.router_loss * jax.lax.stop_gradient(weight) * balance_loss(out.router)
    return total, weight, metrics


def hidden_states(
    model: Transformer, params: Tree, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None
) -> Output:
    """Of the stack whose hidden states the head reads; routers of an encoder before it are put first."""
    own = batch["tokens"], batch["positions"], batch["segments"]
    if model.config.architecture == "encoder":
        return encode(model, params, *own, dropout_key)
    if model.config.architecture == "decoder":
        return decode(model, params, *own, None, dropout_key, prefix_BT=batch.get("prefix"))
    others = batch["encoder_tokens"], batch["encoder_positions"], batch["encoder_segments"]
    made = encode(model, params, *others, dropout_key)
    memory = Memory(made.hidden, batch["encoder_segments"])
    out = decode(model, params, *own, None, dropout_key, memory=memory)
    if made.router is None or out.router is None:
        return out
    return out._replace(router=jnp.concatenate([made.router, out.router]))
