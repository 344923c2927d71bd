"""Next-token prediction."""

from collections.abc import Mapping

import jax

from jaxllm.common.trees import Tree
from jaxllm.models.decoder import Decoder, forward, head_kernel
from jaxllm.objectives.cross_entropy import cross_entropy


def causal_lm_loss(
    model: Decoder,
    params: Tree,
    batch: Mapping[str, jax.Array],
    dropout_key: jax.Array | None,
    *,
    chunk: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The loss of a batch of `tokens`, `targets`, `weights`, `segments` and `positions`, each `[B, T]`.

    Returns:
        `(loss_sum, weight_sum, metrics)` as `cross_entropy` does.
    """
    owner = "embedding" if model.config.tied_embeddings else "head"
    # Gathered once, for the lookup too where it is tied, so that its gradient is scattered once.
    params = {**params, owner: model.at_use(owner, params[owner])}
    hidden_BTD, _ = forward(
        model, params, batch["tokens"], batch["positions"], batch["segments"], dropout_key=dropout_key
    )
    head = head_kernel(params, model.config)
    with jax.named_scope("loss"):
        return cross_entropy(
            hidden_BTD,
            head,
            batch["targets"],
            batch["weights"],
            chunk=chunk,
            z_loss=z_loss,
            softcap=model.config.logit_softcap,
        )
