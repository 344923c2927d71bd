"""FLOPs of kernels, of which a program's text shows shapes and a name only."""

import re

from jaxllm.planning.text import Array, Operation

SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
"""The attention kernels that come with jax for TPU, by the name of the operation."""

PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5, "fmha": 2, "fmhaBackward": 5}
"""Products of the size of queries times keys in each kernel. Forward: scores and weighted values. Backward:
scores again, and the gradients of weights, queries, keys and values, in two kernels on TPU unless they are fused."""


def kernel_flops(operation: Operation, body: dict[str, Operation], visible: float) -> int:
    """What a custom call costs: what it states (`pl.CostEstimate`), or by closed form if it is attention; else nothing.

    Args:
        operation: the call.
        body: the operations that its operands are among.
        visible: the share of all pairs of a query and a key that attention sees; whole blocks make it a little more,
            and cuDNN computes all where its own mask is not causal, as with documents, which are masked by a bias.
    """
    stated = re.search(r'"?cost_estimate"?:\s*\{[^}]*?"?flops"?:\s*"?(\d+)', operation.attributes)
    if stated:
        return int(stated[1])
    kind = _attention(operation)
    if kind is None:
        return 0
    queries, keys = _matrices(operation, body)[:2]
    rows, length = (-2, -2) if kind in ("fwd", "dq", "dkv", "fused") else (1, 1)  # cuDNN's are [B, T, N, H]
    if kind.startswith("fmha") and not re.search(r'"mask_type":\s*"\w*CAUSAL', operation.attributes):
        visible = 1.0
    block = re.search(r'\\"block_kv\w*\\": (\d+)', operation.attributes)
    share = min(1.0, visible + (int(block[1]) / (2 * queries.shape[rows]) if block else 0.0))
    return int(PRODUCTS[kind] * 2 * queries.size * keys.shape[length] * share)


def _attention(operation: Operation) -> str | None:
    """Which of `PRODUCTS` a call is."""
    if splash := SPLASH.search(f"{operation.name} {operation.source}"):
        makes_dq_too = splash[1] == "dkv" and len(operation.arrays) > 2
        return "fused" if makes_dq_too else splash[1]
    cudnn = re.search(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"', operation.attributes)
    return None if cudnn is None else f"fmha{cudnn[1] or ''}"


def _matrices(operation: Operation, body: dict[str, Operation]) -> list[Array]:
    """Queries, keys and values: the first operands of floating point that have a row and a column beside the heads."""
    made = (array for name in operation.operands if name in body for array in body[name].arrays[:1])
    return [array for array in made if array.kind in ("bf16", "f16", "f32") and len(array.shape) >= 3]
