import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.config import MeshConfig
from jaxllm.layers.attention import Mask, attention, cached_attention
from jaxllm.layers.blockwise import QUERY_BLOCK
from jaxllm.layers.kernels import cudnn_attention
from jaxllm.layers.masks import reach
from jaxllm.layers.ring import zigzag
from jaxllm.sharding.mesh import make_mesh

B, N, K, H = 2, 4, 2, 8
LONG = 2 * QUERY_BLOCK + 44
"""Two whole blocks of queries and a part of one."""


def draw(T: int, seed: int = 0, heads: int = K) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, large enough for sharp probabilities."""
    random = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, T, heads, H), (B, T, heads, H)
    return tuple(jnp.asarray(2 * random.normal(size=shape), jnp.float32) for shape in shapes)


def causal_attention(q, k, v, segments, *prefix, **limits):
    return attention(q, k, v, Mask(segments, True, *prefix), **limits)


attend = jax.jit(causal_attention, static_argnames=("window", "softcap"))


def documents(T: int) -> jax.Array:
    """Rows of three and of two documents, whose bounds lie within and across blocks."""
    position = np.arange(T)
    return jnp.asarray(np.stack([(position > T // 5) * 1 + (position > T // 2), position > T - 3]), jnp.int32)


def reference(q, k, v, segments, prefix_BT=None, window=None, softcap=None):
    """The softmax over one whole `[T, T]` matrix."""
    T = q.shape[1]
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    distance = np.arange(T)[:, None] - np.arange(T)
    visible = distance >= 0
    if prefix_BT is not None:
        visible = visible | prefix_BT[:, None, None]
    visible &= distance < (window or T)
    visible &= segments[:, None, :, None] == segments[:, None, None, :]
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, where=visible, axis=-1), v)


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("window", "softcap"))
def output_and_gradients(attend, q, k, v, segments, *prefix, **limits):
    def loss(q, k, v):
        out = attend(q, k, v, segments, *prefix, **limits).astype(jnp.float32)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


def exact(q, k, v, *masks, **limits):
    """The reference in float64: in float32 it is as far from the truth as what it would judge."""
    with jax.enable_x64(True):
        args = (np.asarray(x, np.float64) for x in (q, k, v))
        return [np.asarray(x) for x in output_and_gradients(reference, *args, *map(np.asarray, masks), **limits)]


def assert_near(actual, expected):
    """To 5e-6 of the largest element: float32 rounds sums of terms of that size, in another order each time."""
    for a, e in zip(map(np.asarray, actual), expected, strict=True):
        assert np.abs(a - e).max() < 5e-6 * np.abs(e).max()


@pytest.mark.parametrize(
    ("T", "limits"),
    [
        (7, {}),
        (QUERY_BLOCK, {"window": 5}),
        (LONG, {}),
        (LONG, {"window": 150, "softcap": 3.0}),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_a_plain_softmax(T, limits):
    args = *draw(T), documents(T)
    assert_near(output_and_gradients(causal_attention, *args, **limits), exact(*args, **limits))


@pytest.mark.parametrize("limits", [{}, {"window": 150, "softcap": 3.0}], ids=str)
def test_a_prefix_is_seen_by_its_whole_segment(limits):
    """Two documents a row, of which the first has a prefix, the second one or none."""
    prefix = np.zeros((B, LONG), bool)
    prefix[:, :30] = True
    prefix[1, LONG - 2 : LONG - 1] = True
    args = *draw(LONG), documents(LONG), jnp.asarray(prefix)
    assert_near(output_and_gradients(causal_attention, *args, **limits), exact(*args, **limits))


def splash(q, k, v, segments, **limits):
    return causal_attention(q, k, v, segments, backend="splash", **limits)


@pytest.mark.parametrize("limits", [{}, {"window": 50, "softcap": 3.0}], ids=str)
def test_splash_attention_is_the_same_function(limits):
    random = np.random.default_rng(0)
    T = 2 * QUERY_BLOCK
    q, k, v = (jnp.asarray(random.normal(size=(B, T, heads, 128)), jnp.float32) for heads in (N, K, K))
    # Rows in which an id comes back after another: two segments, not one.
    segments = np.stack([np.arange(T) // 100 % 2, np.arange(T) > 70]).astype(np.int32)
    numbered = np.cumsum(np.diff(segments, prepend=segments[:, :1]) != 0, axis=1)
    expected = exact(q, k, v, numbered, **limits)
    assert_near(output_and_gradients(splash, q, k, v, jnp.asarray(segments), **limits), expected)


def fused(q, k, v, segments, *prefix, window=None):
    limits = reach(segments, window, *prefix)
    return cudnn_attention(q, k, v, limits, is_causal=not prefix, implementation="xla")


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("has_prefix", [False, True])
def test_the_mask_that_the_fused_attention_of_jax_is_given_is_the_same(window, has_prefix):
    prefix = [jnp.asarray(np.arange(LONG) < 30)[None].repeat(B, axis=0)] if has_prefix else []
    args = *draw(LONG), documents(LONG), *prefix
    assert_near(output_and_gradients(fused, *args, window=window), exact(*args, window=window))


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("limits", [{}, {"window": 50, "softcap": 3.0}], ids=str)
def test_rows_cut_over_devices_are_attended_to_in_a_ring(devices, limits):
    T = 2 * QUERY_BLOCK + 16
    args = *draw(T), documents(T)
    expected = exact(*args, **limits)
    mesh = make_mesh(MeshConfig(data=2, sequence=devices, tensor=4 // devices))
    tokens = P(("data", "fsdp"), "sequence")
    with jax.set_mesh(mesh):
        heads = P(*tokens, "tensor", None)
        laid = [x[:, zigzag(T, devices)] for x in args]
        cut = [jax.device_put(x, heads if x.ndim == 4 else tokens) for x in laid]
        actual = output_and_gradients(causal_attention, *cut, **limits)
    assert actual[0].sharding.spec == heads
    order = np.argsort(zigzag(T, devices))
    assert_near([np.asarray(x)[:, order] for x in actual], expected)


def test_the_zigzag_gives_each_device_an_early_and_a_late_chunk():
    np.testing.assert_array_equal(zigzag(8, 2), [0, 1, 6, 7, 2, 3, 4, 5])


def test_a_prefix_in_rows_that_are_cut_is_refused():
    with jax.set_mesh(make_mesh(MeshConfig(data=1, sequence=8))):
        q, k, v = (jax.device_put(x, P(None, "sequence", None, None)) for x in draw(16))
        with pytest.raises(ValueError, match="causally only"):
            causal_attention(q, k, v, documents(16), jnp.ones((B, 16), bool))


def test_bfloat16_stays_near_float32():
    q, k, v = draw(LONG)
    halves = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    actual = output_and_gradients(causal_attention, *halves, documents(LONG))
    expected = output_and_gradients(causal_attention, *(x.astype(jnp.float32) for x in halves), documents(LONG))
    assert [a.dtype for a in actual] == [jnp.float32] + 3 * [jnp.bfloat16]
    for a, e in zip(actual, expected, strict=True):
        assert np.linalg.norm(a.astype(jnp.float32) - e) < 0.02 * np.linalg.norm(e)


def test_a_later_token_leaves_earlier_outputs_bit_equal():
    q, k, v = draw(LONG)
    segments = jnp.zeros((B, LONG), jnp.int32)
    before = attend(q, k, v, segments)
    for cut in (1, QUERY_BLOCK, LONG - 1):
        q2, k2, v2 = (x.at[:, cut:].add(1.0) for x in (q, k, v))
        after = attend(q2, k2, v2, segments)
        np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
        assert np.abs(after[:, cut:] - before[:, cut:]).min(axis=(0, 2, 3)).max() > 0


def test_a_document_in_a_row_is_attended_to_as_if_alone():
    q, k, v = draw(LONG)
    halves = jnp.repeat(jnp.asarray([[0, 1], [1, 0]]), LONG // 2, axis=1)
    packed = attend(q, k, v, halves)
    parts = (x.reshape(2 * B, LONG // 2, -1, H) for x in (q, k, v))
    alone = attend(*parts, jnp.zeros((2 * B, LONG // 2), jnp.int32))
    assert_near([packed], [alone.reshape(packed.shape)])


def test_grouped_queries_equal_repeated_keys_and_values():
    q, k, v = draw(QUERY_BLOCK)
    segments = documents(QUERY_BLOCK)
    repeated = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    assert_near([attend(q, k, v, segments)], [attend(q, *repeated, segments)])


def test_a_window_of_the_whole_row_is_no_window():
    args = *draw(LONG), documents(LONG)
    np.testing.assert_array_equal(attend(*args, window=LONG), attend(*args))


def test_huge_scores_give_no_nan():
    q, k, v = draw(7)
    out = output_and_gradients(causal_attention, 1e4 * q, 1e4 * k, v, documents(7))
    assert all(np.isfinite(x).all() for x in out)


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2, fsdp=1, tensor=2), MeshConfig(data=1, fsdp=2, tensor=1)],
    ids=["tensor", "fsdp"],
)
def test_rows_and_heads_cut_over_devices_change_nothing(mesh):
    args = *draw(QUERY_BLOCK + 5), documents(QUERY_BLOCK + 5)
    expected = exact(*args, window=20)
    devices = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    heads, rows = P(("data", "fsdp"), None, "tensor", None), P(("data", "fsdp"), None)
    with jax.set_mesh(devices):
        cut = [jax.device_put(a, NamedSharding(devices, heads if a.ndim == 4 else rows)) for a in args]
        actual = output_and_gradients(causal_attention, *cut, window=20)
    assert_near(actual, expected)
    for x, given in zip(actual, [cut[0], *cut[:3]], strict=True):
        assert x.sharding.is_equivalent_to(given.sharding, 4)


@pytest.mark.parametrize("T", [3, QUERY_BLOCK + 5])
@pytest.mark.parametrize("limits", [{}, {"window": 4, "softcap": 3.0}], ids=str)
def test_cached_attention_equals_causal_attention_at_its_slots(limits, T):
    """Two rows whose caches are filled to different lengths; slots beyond hold garbage."""
    S, lengths = T + 13, np.array([10, 4])
    q, k, v = draw(S)
    whole = attend(q, k, v, jnp.zeros((B, S), jnp.int32), **limits)
    slots = lengths[:, None] + np.arange(T)
    rows = np.arange(B)[:, None]
    beyond = np.arange(S) >= lengths[:, None] + T
    k, v = (jnp.where(beyond[:, :, None, None], 1e9, x) for x in (k, v))
    k_BKHS, v_BKSH = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    out = cached_attention(q[rows, slots], k_BKHS, v_BKSH, jnp.asarray(slots), **limits)
    assert_near([out], [whole[rows, slots]])


def seen_by_all(q, k, v, segments, **limits):
    return attention(q, k, v, Mask(segments, is_causal=False), **limits)


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_without_a_direction_a_segment_is_seen_whole(backend):
    random = np.random.default_rng(0)
    T = 2 * QUERY_BLOCK
    q, k, v = (jnp.asarray(random.normal(size=(B, T, heads, 128)), jnp.float32) for heads in (N, K, K))
    everywhere = jnp.ones((B, T), bool)
    attend = functools.partial(seen_by_all, backend=backend)
    assert_near(output_and_gradients(attend, q, k, v, documents(T)), exact(q, k, v, documents(T), everywhere))


def test_other_rows_are_attended_to_segment_by_segment():
    """Rows of T queries and S keys; the second row has a segment without keys, which may give anything finite."""
    T, S = QUERY_BLOCK + 30, 50
    q, _, _ = draw(T)
    _, k, v = draw(S, seed=1)
    segments = jnp.asarray(np.stack([np.arange(T) // 60 + 1, np.minimum(np.arange(T) // 50 + 1, 3)]), jnp.int32)
    keys = jnp.asarray(np.stack([np.arange(S) // 20 + 1, np.minimum(np.arange(S) // 30 + 1, 2)]), jnp.int32)
    has_keys = jnp.asarray(segments <= keys.max(axis=1, keepdims=True))[..., None, None]

    def of_others(q, k, v, segments, keys):
        return jnp.where(has_keys, attention(q, k, v, Mask(segments, key_segments_BS=keys, is_causal=False)), 0)

    def plain(q, k, v, segments, keys):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(H)
        visible = (segments[:, :, None] == keys[:, None])[:, None] | ~has_keys[..., 0][:, None]
        p = jax.nn.softmax(scores, where=visible, axis=-1)
        return jnp.where(has_keys, jnp.einsum("BNTS,BSNH->BTNH", p, v), 0)

    args = q, k, v, segments, keys
    assert_near(output_and_gradients(of_others, *args), output_and_gradients(plain, *args))


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_bias_by_distance_is_added_to_the_scores_and_has_its_gradient(is_causal):
    q, k, v = draw(LONG)
    bias = jnp.asarray(np.random.default_rng(2).normal(size=(N, 2 * LONG - 1)), jnp.float32)
    segments = documents(LONG)
    distance = np.arange(LONG) - np.arange(LONG)[:, None]
    visible = (segments[:, None, :, None] == segments[:, None, None]) & ((distance <= 0) | (not is_causal))

    def biased(bias, q, k, v):
        return attention(q, k, v, Mask(segments, is_causal), bias_NX=bias)

    def plain(bias, q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(H) + bias[:, distance + LONG - 1]
        return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, where=visible, axis=-1), v)

    actual, expected = (
        jax.jit(jax.value_and_grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), argnums=(0, 1, 2, 3)))(bias, q, k, v)
        for f in (biased, plain)
    )
    assert np.abs(expected[1][0]).max() > 0.1
    assert_near(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]))
