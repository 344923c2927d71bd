"""Hold the platform's kernel of attention against float64, with its gradients, and say what it and XLA take.

    python tools/check_kernels.py

On a GPU that is cuDNN, on a TPU splash attention; a machine without either has nothing to check, which is an error.
Inputs are rounded to bfloat16 first, so that what differs is the arithmetic alone; an error is the largest one of the
output and of the three gradients, each as a part of its largest element. The kernel passes where it is at most twice
as far from the truth as blocks in XLA are, which compute in the same type. Exits with 1 where any case does not pass.
"""

import functools
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.layers.attention import KERNELS, Mask, attention

B, N, K = 2, 8, 4
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "documents": (1024, 64, {}),
    "documents, heads of 128": (1024, 128, {}),
    "a window of 200": (1024, 64, {"window": 200}),
    "both directions": (512, 64, {"is_causal": False}),
    "a prefix": (512, 64, {"prefix": True}),
    "other rows": (512, 64, {"is_causal": False, "others": True}),
    "rows of 4,096": (4096, 64, {}),
}
"""Tokens, width of a head, and what the mask is."""
ONLY_ON_GPU = ("a prefix", "other rows")
FARTHER, REPEATS = 2.0, 10


def main() -> int:
    kernel = KERNELS.get(jax.default_backend())
    if kernel is None:
        print(f"error: there is no kernel of attention for {jax.default_backend()}; a GPU or a TPU has one")
        return 2
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {kernel}, bfloat16, {B} rows, {N} heads, {K} of keys"
    )
    print(f"{'':26}{'error':>10}{'of XLA':>10}{'ms':>8}{'of XLA':>8}")
    failed = 0
    for name, (T, H, options) in CASES.items():
        if kernel == "splash" and name in ONLY_ON_GPU:
            continue
        args, mask = drawn(T, H, options.get("prefix", False), options.get("others", False))
        limits = {"is_causal": options.get("is_causal", True), "window": options.get("window")}
        truth = exact(args, mask, **limits)
        errors, times = [], []
        for backend in (kernel, "xla"):
            of = functools.partial(with_gradients, functools.partial(ours, backend=backend, **limits))
            program = jax.jit(of).lower(args, mask).compile()
            errors.append(distance(program(args, mask), truth))
            times.append(milliseconds(program, args, mask))
        passes = errors[0] <= FARTHER * errors[1]
        failed += not passes
        print(
            f"{name:26}{errors[0]:10.2e}{errors[1]:10.2e}{times[0]:8.2f}{times[1]:8.2f}{'' if passes else '  FAILED'}"
        )
    return int(failed > 0)


def drawn(T: int, H: int, prefix: bool, others: bool) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
    """Queries, keys and values, and rows of three documents and of two, the second of 3 tokens."""
    random, place = np.random.default_rng(0), np.arange(T)
    args = tuple(jnp.asarray(2 * random.normal(size=(B, T, heads, H)), jnp.bfloat16) for heads in (N, K, K))
    segments = np.stack([(place > T // 5) * 1 + (place > T // 2), place > T - 4]).astype(np.int32)
    mask = {"segments_BT": jnp.asarray(segments)}
    if prefix:
        mask["prefix_BT"] = jnp.asarray(np.stack([place < T // 8, (place > T - 4) & (place < T - 1)]))
    if others:
        mask["key_segments_BS"] = mask["segments_BT"]
    return args, mask


def ours(args: Any, mask: Any, backend: Any, is_causal: bool, window: int | None) -> jax.Array:
    return attention(*args, Mask(**mask, is_causal=is_causal), window=window, backend=backend)


def plain(args: Any, mask: Any, is_causal: bool, window: int | None) -> jax.Array:
    """The softmax over the whole matrix."""
    q, k, v = args
    T = q.shape[1]
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    behind = jnp.arange(T)[:, None] - jnp.arange(T)
    seen = (behind >= 0) | (not is_causal)
    if "prefix_BT" in mask:
        seen = seen | mask["prefix_BT"][:, None, None]
    seen = seen & (behind < (window or T))
    seen = seen & (mask["segments_BT"][:, None, :, None] == mask["segments_BT"][:, None, None, :])
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, where=seen, axis=-1), v)


def with_gradients(attend: Any, args: Any, mask: Any) -> tuple[jax.Array, ...]:
    """The output and the gradients of queries, keys and values."""

    def loss(args: Any) -> tuple[jax.Array, jax.Array]:
        out = attend(args, mask)
        return jnp.sum(jnp.sin(out.astype(jnp.promote_types(out.dtype, jnp.float32)))), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(args)
    return out, *gradients


def exact(args: Any, mask: Any, **limits: Any) -> list[np.ndarray]:
    """In float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = tuple(jnp.asarray(np.asarray(x, np.float64)) for x in args)
        masks = {name: jnp.asarray(np.asarray(x)) for name, x in mask.items()}
        return [np.asarray(x) for x in with_gradients(functools.partial(plain, **limits), wide, masks)]


def distance(found: tuple[jax.Array, ...], truth: list[np.ndarray]) -> float:
    """The largest error, as a part of the largest element; infinite where a number is none."""
    errors = [np.abs(np.asarray(f, np.float64) - t).max() / np.abs(t).max() for f, t in zip(found, truth, strict=True)]
    return float(max(errors)) if np.isfinite(errors).all() else float("inf")


def milliseconds(program: Any, args: Any, mask: Any) -> float:
    """Forward and backward, the median."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(args, mask))
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
