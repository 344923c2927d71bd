"""A mixture of experts (2401.04088): a router sends each token to a few gated MLPs, whose results it weighs.

No token is dropped and none is padded: tokens are sorted by expert, and each expert multiplies its own run of them
(`jax.lax.ragged_dot`: by a kernel on TPU and GPU; a CPU multiplies all tokens with each expert and is slow). Experts
that are cut over devices read the tokens that their device holds anyway, and one sum over the devices brings the
results together, as with the columns of a plain MLP.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.common.trees import Tree
from jaxllm.layers.shards import along_tokens, sharding_of

Activation = Callable[[jax.Array], jax.Array]


def expert_mlp(
    x_BTD: jax.Array, params: Tree, activation: Activation, chosen: int, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`[B, T, D]`, and `[2, E]` of the tokens whose segment is not 0: how many times each expert is chosen for one, and
    the probability that the router gives it, both on average.

    Args:
        x_BTD: the normed stream.
        params: kernels of `router` `[D, E]`, `gate`, `up` `[E, D, M]` and `down` `[E, M, D]`.
        activation: of the gate.
        chosen: experts of one token; their weights are made to sum to 1.
        segments_BT: 0 is padding.
    """
    # float32: near ties decide which expert is taken.
    logits = jnp.einsum("BTD,DJ->BTJ", x_BTD.astype(jnp.float32), params["router"]["kernel"])
    probability = jax.nn.softmax(logits, axis=-1)
    weights_BTk, experts_BTk = jax.lax.top_k(probability, chosen)
    weights_BTk /= jnp.sum(weights_BTk, axis=-1, keepdims=True)
    kernels = [params[name]["kernel"] for name in ("gate", "up", "down")]
    real = (segments_BT != 0).astype(jnp.float32)[..., None]
    times = jnp.sum(jax.nn.one_hot(experts_BTk, probability.shape[-1]), axis=-2)
    shares = [jnp.sum(real * x, axis=(0, 1)) / jnp.maximum(jnp.sum(real), 1.0) for x in (times, probability)]
    return _mixed(activation, x_BTD, weights_BTk, experts_BTk, kernels), jnp.stack(shares)


def balance_loss(router_L2E: jax.Array) -> jax.Array:
    """`E sum_e f_e p_e` (2101.03961), f and p averaged over all layers first; `chosen` where experts are even."""
    times, probability = jnp.mean(router_L2E, axis=0)
    return times.size * jnp.sum(times * probability)


def _mixed(
    activation: Activation, x_BTD: jax.Array, weights_BTk: jax.Array, experts_BTk: jax.Array, kernels: list[jax.Array]
) -> jax.Array:
    sharding = sharding_of(kernels[0])
    if sharding is None:
        return _of_own(activation, None, x_BTD, weights_BTk, experts_BTk, *kernels)
    axis = sharding.spec[0]
    tokens = along_tokens(x_BTD, 3)
    assert tokens is not None

    def local(*args: jax.Array) -> jax.Array:
        return _of_own(activation, axis, *args)

    return jax.shard_map(local, out_specs=tokens.spec)(x_BTD, weights_BTk, experts_BTk, *kernels)


def _of_own(
    activation: Activation,
    axis: str | None,
    x_BTD: jax.Array,
    weights_BTk: jax.Array,
    experts_BTk: jax.Array,
    gate_EDM: jax.Array,
    up_EDM: jax.Array,
    down_EMD: jax.Array,
) -> jax.Array:
    """The results of this device's experts for its tokens, summed over the devices of the mesh axis `axis`."""
    D, k, E = x_BTD.shape[-1], weights_BTk.shape[-1], gate_EDM.shape[0]
    expert = experts_BTk.reshape(-1) - (0 if axis is None else jax.lax.axis_index(axis) * E)
    is_own = (expert >= 0) & (expert < E)
    order = jnp.argsort(jnp.where(is_own, expert, E), stable=True)
    counts_E = jnp.sum(expert[:, None] == jnp.arange(E), axis=0, dtype=jnp.int32)

    rows = x_BTD.reshape(-1, D)[order // k]

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), counts_E)

    hidden = activation(product(rows, gate_EDM)) * product(rows, up_EDM)
    # Rows after those of the last expert belong to other devices, and hold anything.
    made = jnp.where(is_own[order][:, None], product(hidden, down_EMD), 0)
    # float32: a sum over experts, and over devices.
    back = made[jnp.argsort(order)].reshape(*weights_BTk.shape, D).astype(jnp.float32)
    mixed = jnp.sum(back * weights_BTk[..., None], axis=-2)
    return (mixed if axis is None else jax.lax.psum(mixed, axis)).astype(x_BTD.dtype)
