"""A mixture of experts (2401.04088): a router sends each token to a few gated MLPs, whose results it weighs.

No token is dropped and none is padded: tokens are sorted by expert, and each expert multiplies its own run of them
(`jax.lax.ragged_dot`: by a kernel on TPU and GPU; a CPU multiplies all tokens with each expert and is slow). Experts
that are cut over devices read the tokens that their device holds anyway, and one sum over the devices brings the
results together, as with the columns of a plain MLP.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree
from jaxllm.layers.linear import WIDE
from jaxllm.layers.shards import along_tokens, gradient_sharding, sharding_of

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


class _Routes(NamedTuple):
    """On each device: which copy of a token stands in each row, sorted by expert, and how many rows an expert has."""

    order: jax.Array
    is_own: jax.Array
    """Of each row; those of other devices' experts stand last, and hold anything."""
    counts: jax.Array


def _mixed(
    activation: Activation, x_BTD: jax.Array, weights_BTk: jax.Array, experts_BTk: jax.Array, kernels: list[jax.Array]
) -> jax.Array:
    gate_EDM, up_EDM, down_EMD = kernels
    experts, axis, rows = gate_EDM.shape[0], None, None
    if (sharding := sharding_of(gate_EDM)) is not None:
        axis = sharding.spec.partitions[0]
        rows = P((*_axes_of(x_BTD), *(() if axis is None else (axis,))))
        experts //= 1 if axis is None else sharding.mesh.shape[axis]

    def each(function: Callable[..., Any], *args: Any, out: Any = rows) -> Any:
        return function(*args) if rows is None else jax.shard_map(function, out_specs=out)(*args)

    routes, sorted_XD = each(functools.partial(_sorted_by_expert, experts, axis), x_BTD, experts_BTk)
    hidden = activation(_product(sorted_XD, gate_EDM, routes.counts)) * _product(sorted_XD, up_EDM, routes.counts)
    made_XD = _product(hidden, down_EMD, routes.counts)
    tokens = along_tokens(x_BTD, 3)
    return each(functools.partial(_weighed, axis), made_XD, routes, weights_BTk, out=tokens and tokens.spec)


def _axes_of(x_BTD: jax.Array) -> tuple[str, ...]:
    """The mesh axes over which tokens are cut, outermost first."""
    batch, tokens, _ = jax.typeof(x_BTD).sharding.spec.partitions
    return tuple(axis for part in (batch, tokens) for axis in ((part,) if isinstance(part, str) else part or ()))


def _sorted_by_expert(
    experts: int, axis: str | None, x_BTD: jax.Array, experts_BTk: jax.Array
) -> tuple[_Routes, jax.Array]:
    """A row for each choice of a token, those of this device's experts first."""
    expert = experts_BTk.reshape(-1) - (0 if axis is None else jax.lax.axis_index(axis) * experts)
    is_own = (expert >= 0) & (expert < experts)
    order = _argsort(jnp.where(is_own, expert, experts))
    counts = jnp.sum(expert[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    rows_XD = x_BTD.reshape(-1, x_BTD.shape[-1])[order // experts_BTk.shape[-1]]
    return _Routes(order, is_own[order], counts), rows_XD


def _argsort(keys: jax.Array) -> jax.Array:
    """Stable. (`jnp.argsort` sorts a plain count along, of which jax thinks that it stays the same on all devices.)"""
    places = jnp.arange(keys.size, dtype=keys.dtype) + 0 * keys
    return jax.lax.sort_key_val(keys, places)[1]


def _weighed(axis: str | None, made_XD: jax.Array, routes: _Routes, weights_BTk: jax.Array) -> jax.Array:
    """What the experts made of each token, weighed and summed, over the devices too."""
    # float32: a sum over experts, and over devices.
    made = jnp.where(routes.is_own[:, None], made_XD, 0).astype(jnp.float32)
    back = made[_argsort(routes.order)].reshape(*weights_BTk.shape, -1)
    mixed = jnp.sum(back * weights_BTk[..., None], axis=-2)
    return (mixed if axis is None else jax.lax.psum(mixed, axis)).astype(made_XD.dtype)


@jax.custom_vjp
def _product(rows_XI: jax.Array, kernel_EIO: jax.Array, counts_E: jax.Array) -> jax.Array:
    """Each expert's kernel times its own rows; on every device, by itself."""
    return checkpoint_name(_on_devices(_multiply, rows_XI, kernel_EIO, counts_E), WIDE)


def _multiply(rows_XI: jax.Array, kernel_EIO: jax.Array, counts_E: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(rows_XI, kernel_EIO.astype(rows_XI.dtype), counts_E)


def _on_devices(function: Callable[..., jax.Array], rows: jax.Array, kernel: jax.Array, *rest: jax.Array) -> jax.Array:
    """`function` of what each device holds, cut like `rows`. Nothing is derived of it."""
    sharding = sharding_of(rows)
    if sharding is None:
        return function(rows, kernel, *rest)
    plain = jax.sharding.reshard(kernel, P(*jax.typeof(kernel).sharding.spec.partitions))
    return jax.shard_map(function, out_specs=P(sharding.spec.partitions[0]), check_vma=False)(rows, plain, *rest)


def _forward(rows_XI: jax.Array, kernel_EIO: jax.Array, counts_E: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _product(rows_XI, kernel_EIO, counts_E), (rows_XI, kernel_EIO, counts_E)


def _backward(saved: tuple[jax.Array, ...], d_XO: jax.Array) -> tuple[jax.Array | None, ...]:
    rows_XI, kernel_EIO, counts_E = saved
    d_rows = _on_devices(_multiply, d_XO, jnp.swapaxes(kernel_EIO, 1, 2), counts_E)

    def of_kernel(rows: jax.Array, d: jax.Array, counts: jax.Array) -> jax.Array:
        # float32: a sum over all tokens of the batch, of which bfloat16 would keep 8 bits.
        return jax.lax.ragged_dot_general(rows, d, counts, BY_ROWS, preferred_element_type=kernel_EIO.dtype)

    sharding = gradient_sharding(kernel_EIO)
    if sharding is None:
        return d_rows, of_kernel(rows_XI, d_XO, counts_E), None
    axis = sharding.spec.partitions[0]
    others = tuple(name for name in jax.typeof(rows_XI).sharding.spec.partitions[0] if name != axis)
    parts = jax.shard_map(lambda *args: of_kernel(*args)[None], out_specs=P(others, axis, None, None), check_vma=False)(
        rows_XI, d_XO, counts_E
    )
    # Each device sums its own part alone, and the sum over devices is left to whoever wants it.
    return d_rows, jax.lax.reduce_sum(parts, (0,), out_sharding=sharding), None


_product.defvjp(_forward, _backward)

BY_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
"""Of the gradient of a kernel: rows are summed over, an expert's own."""
