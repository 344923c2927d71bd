"""FLOPs, moved bytes and cycles against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from jaxllm.layers.attention import QUERY_BLOCK, Mask, attention
from jaxllm.planning.text import parse
from jaxllm.planning.work import meets, work
from tests.planning.programs import ASYNC_GATHER, BATCHED_PRODUCT, KERNEL, SPLASH


def compiled(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return work(parse(jax.jit(function).lower(*arrays).compile().as_text()))


def test_a_product_is_two_for_each_multiplication():
    assert compiled(jnp.dot, (48, 32), (32, 80)).flops == 2 * 48 * 32 * 80


def test_batched_products_and_transposed_ones_are_counted_alike():
    assert compiled(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (3, 48, 32), (3, 80, 32)).flops == 6 * 48 * 32 * 80


def test_a_product_in_a_loop_counts_as_often_as_it_runs():
    def turns(x, w):
        return jax.lax.scan(lambda x, _: (jnp.dot(x, w), None), x, None, length=7)[0]

    assert compiled(turns, (16, 32), (32, 32)).flops == 7 * 2 * 16 * 32 * 32


def test_attention_counts_the_blocks_up_to_the_diagonal():
    B, T, N, H = 2, 3 * QUERY_BLOCK, 4, 16
    segments = jnp.ones((B, T), jnp.int32)
    found = compiled(lambda q, k, v: attention(q, k, v, Mask(segments)), *[(B, T, N, H)] * 3)
    blocks = (1 + 2 + 3) * QUERY_BLOCK * QUERY_BLOCK
    assert found.flops == 2 * 2 * B * N * H * blocks


def test_a_convolution_counts_what_meets_the_input():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert compiled(convolve, (2, 10, 3), (3, 3, 5)).flops == 2 * 2 * 3 * 5 * (3 * 10 - 2)


def test_a_batched_product_that_is_written_as_a_dilated_convolution_is_no_more_than_its_products():
    assert work(parse(BATCHED_PRODUCT)).flops == 8 * 2 * 256 * 128 * 512


def test_a_kernel_counts_what_it_states_and_one_that_states_nothing_counts_nothing():
    assert work(parse(KERNEL)).flops == work(parse(KERNEL)).kernel_flops == 4096
    assert work(parse(KERNEL.replace("cost_estimate", "other"))).flops == 0


def test_cycles_are_the_compilers_own():
    assert work(parse(ASYNC_GATHER)).cycles == 12636


@pytest.mark.parametrize("length", [1, 5])
def test_a_loop_that_reads_a_slice_of_a_stack_moves_the_slice_and_not_the_stack(length):
    def turns(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x + w), None), x, stack)[0]

    one = 4 * 1024
    moved = compiled(turns, (length, 1024), (1024,)).memory_bytes
    assert 3 * one * length <= moved <= (3 * length + 4) * one


def test_attention_kernels_count_their_products_over_the_blocks_that_they_see():
    one = 2 * 2 * 8 * 2048 * 2048 * 128
    assert work(parse(SPLASH), visible=1.0).kernel_flops == (2 + 5) * one
    blocks = 16 * 17 / 2 / 16**2  # of 128 queries and keys, up to the diagonal
    assert work(parse(SPLASH), visible=0.5).kernel_flops == (2 + 5) * int(one * blocks)
    unfused = SPLASH.replace("bf16[1,2,8,2048,128]{4,3,2,1,0}, ", "")
    assert work(parse(unfused)).kernel_flops == (2 + 4) * one


@pytest.mark.parametrize(("name", "products"), [("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5), ("fmhaDropout", 2)])
@pytest.mark.parametrize(("mask", "share"), [("CAUSAL", 0.5), ("PADDING_CAUSAL", 0.5), ("NO_MASK", 1), ("PADDING", 1)])
def test_attention_of_cudnn_counts_its_products_over_all_pairs_that_its_mask_leaves(name, products, mask, share):
    program = f"""ENTRY %main (q: bf16[2,512,8,64]) -> bf16[2,512,8,64] {{
  %q = bf16[2,512,8,64]{{3,2,1,0}} parameter(0)
  ROOT %x = (bf16[2,8,512,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), custom_call_target="__cudnn${name}", \
backend_config={{"cudnn_fmha_backend_config": {{"fmha_scale": 0.125, "mask_type": "{mask}", "seed": 42}}}}
}}
"""
    assert work(parse(program), 0.5).kernel_flops == products * 2 * 2 * 8 * 512 * 512 * 64 * share


def by_counting(sizes, stride, low, dilate, spread):
    size, kernel, out = sizes
    at = (place * stride + element * spread - low for place in range(out) for element in range(kernel))
    return sum(1 for x in at if 0 <= x <= (size - 1) * dilate and x % dilate == 0)


def test_what_a_window_meets_is_what_counting_finds():
    for sizes in ((8, 8, 8), (5, 3, 7), (1, 4, 6), (6, 1, 3)):
        for stride, low, dilate, spread in itertools.product((1, 2, 6, 7), (-1, 0, 3), (1, 2, 4, 8), (1, 3)):
            texts = {"stride": stride, "pad": f"{low}_0", "lhs_dilate": dilate, "rhs_dilate": spread}
            window = {name: str(value) for name, value in texts.items()}
            assert meets(sizes, window) == by_counting(sizes, stride, low, dilate, spread)
