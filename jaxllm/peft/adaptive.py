"""AdaLoRA (2303.10512): ranks are taken from where they matter least, while the run goes on.

An update of a kernel is A diag(l) B, each entry of l with its column of A and its row of B a triplet. As an optimizer
around another one it adds the gradient of what keeps columns and rows orthogonal, keeps the importance of every
triplet, and sets to 0 the entries of l of those that are beyond the budget.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxllm.common.trees import Tree, flatten, nest
from jaxllm.config import AdaptiveConfig, RunConfig
from jaxllm.models.adapters import Update, updates


class AdaptiveState(NamedTuple):
    """What is known of the importance of the leaves of all updates."""

    step: jax.Array
    sensitivity: Tree
    """The moving average of |w dL/dw|."""
    uncertainty: Tree
    """That of how far it strays from its average."""
    kept: Tree
    """Which triplets are within the budget: bool `[L, Q]` of each module. Entries of others are set to 0 when ranks
    are chosen, grow again in between, and are 0 in the end."""
    inner: Any


def adaptive_ranks(
    config: RunConfig, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`inner`, with ranks that are chosen anew every `every` steps, until they settle."""
    tuning, found = config.tuning.adaptive, updates(config.model, config.tuning)
    paths = [f"{update.module}/{name}" for update in found for name in ("lora_a", "lora_b", "lora_e")]

    def init(params: Tree) -> AdaptiveState:
        flat = flatten(params)
        zeros = nest({path: jnp.zeros_like(flat[path]) for path in paths})
        kept = nest({u.module: jnp.ones(flat[f"{u.module}/lora_e"].shape, bool) for u in found})
        return AdaptiveState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), kept, inner.init(params))

    def update(grads: Tree, state: AdaptiveState, params: Tree, **extra: Any) -> tuple[Tree, AdaptiveState]:
        flat, slopes = flatten(params), flatten(grads)
        sensitivity, uncertainty = flatten(state.sensitivity), flatten(state.uncertainty)
        for path in paths:
            seen = jnp.abs(flat[path] * slopes[path])
            sensitivity[path] = _averaged(sensitivity[path], seen, tuning.sensitivity_decay)
            strays = jnp.abs(seen - sensitivity[path])
            uncertainty[path] = _averaged(uncertainty[path], strays, tuning.uncertainty_decay)
        scores = {path: sensitivity[path] * uncertainty[path] for path in paths}
        kept = _kept(config, found, scores, state)
        for one in found:  # only now: the pull says nothing of what matters to the loss
            for path, slope in towards_orthogonal(one, flat).items():
                slopes[path] = slopes[path] + tuning.orthogonality * slope
        moves, moved = inner.update(nest(slopes), state.inner, params, **extra)
        steps = flatten(moves)
        masks = _masked_now(tuning, config.train.steps, state.step)
        for one in found:
            path = f"{one.module}/lora_e"
            gone = masks & ~kept[one.module]
            steps[path] = jnp.where(gone, -flat[path], steps[path])
        new = AdaptiveState(state.step + 1, nest(sensitivity), nest(uncertainty), nest(kept), moved)
        return nest(steps), new

    return optax.GradientTransformationExtraArgs(init, update)


def budget(adaptive: AdaptiveConfig, steps: int, first: int, last: int, step: jax.Array) -> jax.Array:
    """How many triplets are kept after a step: `first` ones, then on a cubic curve down to `last`; int32."""
    begins, ends = _phases(adaptive, steps)
    done = jnp.where(step < ends, jnp.clip((step - begins) / max(1, ends - begins), 0.0, 1.0), 1.0)
    return jnp.round(last + (first - last) * (1 - done) ** 3).astype(jnp.int32)


def _phases(adaptive: AdaptiveConfig, steps: int) -> tuple[int, int]:
    """The step from which on ranks are taken, and that after which they stay as they are; the last at the latest."""
    return round(steps * adaptive.warmup), min(round(steps * (1 - adaptive.settled)), steps - 1)


def _masked_now(adaptive: AdaptiveConfig, steps: int, step: jax.Array) -> jax.Array:
    """Whether entries beyond the budget are set to 0 after this step: when ranks are chosen, and when they have
    settled; between two choices they may grow again."""
    begins, ends = _phases(adaptive, steps)
    return (step >= begins) & ((step % adaptive.every == 0) | (step >= ends))


def _kept(
    config: RunConfig, found: list[Update], scores: dict[str, jax.Array], state: AdaptiveState
) -> dict[str, jax.Array]:
    """Which triplets of each module are kept after this step."""
    tuning, before = config.tuning.adaptive, flatten(state.kept)
    importance = {one.module: _importance(one, scores) for one in found}
    every = jnp.concatenate([x.ravel() for x in importance.values()])
    last = sum(one.kernel.shape[0] * one.final_rank for one in found)
    count = budget(tuning, config.train.steps, every.size, last, state.step)
    place = jnp.argsort(jnp.argsort(-every))  # of equal ones the first are kept: never more than the budget
    has_settled = state.step > _phases(tuning, config.train.steps)[1]
    kept, start = {}, 0
    for module, x in importance.items():
        chosen = (place[start : start + x.size] < count).reshape(x.shape)
        kept[module], start = jnp.where(has_settled, before[module], chosen), start + x.size
    return kept


def _importance(update: Update, scores: dict[str, jax.Array]) -> jax.Array:
    """Of each triplet of a module, `[L, Q]`: that of its entry, and the means over its column and its row."""
    a, b = scores[f"{update.module}/lora_a"], scores[f"{update.module}/lora_b"]
    column = jnp.mean(a, axis=tuple(range(1, a.ndim - 1)))
    row = jnp.mean(b, axis=tuple(range(2, b.ndim)))
    if not jax.typeof(row).sharding.mesh.empty:  # `fsdp` may cut the ranks of A and B, and those of the entries not
        column, row = (jax.sharding.reshard(x, P(None, None)) for x in (column, row))
    return scores[f"{update.module}/lora_e"] + column + row


def _averaged(average: jax.Array, seen: jax.Array, decay: float) -> jax.Array:
    return decay * average + (1 - decay) * seen


def towards_orthogonal(update: Update, flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The gradients of |A'A - I|^2 + |BB' - I|^2, by the paths of A and B in `flat`."""
    (_, *axes), reads = update.kernel.axes, update.kernel.reads
    inputs, outputs = "".join(axes[:reads]), "".join(axes[reads:])
    a, b = flat[f"{update.module}/lora_a"], flat[f"{update.module}/lora_b"]
    whole = None if jax.typeof(a).sharding.mesh.empty else P(None, None, None)

    def excess(equation: str, x: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, x, out_sharding=whole, precision="highest") - jnp.eye(update.rank)

    of_a = excess(f"L{inputs}Q,L{inputs}S->LQS", a)
    of_b = excess(f"LQ{outputs},LS{outputs}->LQS", b)
    return {
        f"{update.module}/lora_a": 4 * jnp.einsum(f"L{inputs}S,LSQ->L{inputs}Q", a, of_a),
        f"{update.module}/lora_b": 4 * jnp.einsum(f"LQS,LS{outputs}->LQ{outputs}", of_b, b),
    }
