"""Programs taken apart."""

import pytest

from jaxllm.config import UserError
from jaxllm.planning.text import Array, arrays, bits, parse
from tests.planning.programs import ASYNC_GATHER, LOOP, SPLASH, TWO_SLICES


@pytest.mark.parametrize(
    ("kind", "count"),
    [("bf16", 16), ("f8e4m3fn", 8), ("s4", 4), ("pred", 8), ("f64", 64), ("c64", 128), ("token", 0), ("u2", 2)],
)
def test_every_type_of_number_has_a_size_and_none_is_refused(kind, count):
    assert bits(kind) == count


def test_a_tuple_is_taken_apart_with_layouts_and_numbering():
    text = "(f32[2,3]{1,0:T(8,128)}, /*index=5*/bf16[4]{0:T(128)(2,1)S(1)}, pred[])"
    assert arrays(text) == (
        Array("f32", (2, 3), "1,0:T(8,128)"),
        Array("bf16", (4,), "0:T(128)(2,1)S(1)"),
        Array("pred", (), ""),
    )
    assert [array.is_on_chip for array in arrays(text)] == [False, True, False]


def test_padding_rounds_the_last_dimensions_of_the_layout_up_to_the_tile():
    assert Array("f32", (3, 200), "1,0:T(8,128)").padded_bytes == 8 * 256 * 4
    assert Array("f32", (200, 3), "0,1:T(8,128)").padded_bytes == 8 * 256 * 4
    assert Array("f32", (5, 3, 200), "2,1,0:T(8,128)").padded_bytes == 5 * 8 * 256 * 4
    assert Array("f32", (7,), "0:T(1024)").padded_bytes == 4096
    assert Array("f32", (3, 200), "1,0").padded_bytes == Array("f32", (3, 200), "").bytes == 2400
    assert Array("s4", (3,), "").bytes == 1.5


def test_bodies_of_fusions_are_no_memory_of_their_own_and_those_of_loops_are():
    assert parse(ASYNC_GATHER).fused == {"fused_computation.1", "async_collective_fusion.1", "fused_computation.2"}
    assert parse(TWO_SLICES).fused == {"add"}


def test_a_loop_whose_first_turn_was_taken_out_runs_once_less():
    program = parse(TWO_SLICES)
    assert program.entry == "main"
    assert program.runs["body"] == 3
    assert parse(TWO_SLICES.replace("constant(1)", "constant(0)")).runs["body"] == 4


def loop(compared: str, start: int = 0, step: int = 1) -> str:
    operands, direction = compared.split()
    words = {"OPERANDS": operands, "DIRECTION": direction, "START": str(start), "STEP": str(step)}
    text = LOOP
    for word, value in words.items():
        text = text.replace(word, value)
    return text


@pytest.mark.parametrize(
    ("compared", "start", "step", "turns"),
    [
        ("%i.1,%bound LT", 0, 1, 8),
        ("%i.1,%bound LT", 0, 2, 4),
        ("%i.1,%bound LT", 1, 3, 3),
        ("%i.1,%bound LT", -2, 1, 10),
        ("%i.1,%bound LT", 9, 1, 0),
        ("%i.1,%bound LE", 0, 1, 9),
        ("%i.1,%bound LE", 1, 2, 4),
        ("%bound,%i.1 GT", 0, 1, 8),
        ("%bound,%i.1 GE", 0, 2, 5),
        ("%i.1,%bound NE", 0, 2, 4),
        ("%i.1,%bound GT", 20, -3, 4),
        ("%i.1,%bound GE", 20, -3, 5),
    ],
)
def test_a_loop_runs_from_its_start_by_its_step_to_its_bound(compared, start, step, turns):
    assert parse(loop(compared, start, step)).runs["body"] == turns


@pytest.mark.parametrize(
    ("compared", "step"), [("%i.1,%bound EQ", 1), ("%i.1,%bound GT", 1), ("%i.1,%bound NE", 3), ("%i.1,%i.1 LT", 1)]
)
def test_a_loop_that_cannot_be_counted_is_one_message(compared, step):
    with pytest.raises(UserError, match="a loop whose trip count is not known: %loop"):
        parse(loop(compared, 0, step))


def test_an_unscheduled_order_and_unnamed_sources_are_read():
    body = parse(TWO_SLICES).computations["condition"]
    assert body["lt"].is_root
    assert body["lt"].operands == ("i.1", "constant.4")
    assert body["constant.4"].source == "jit(step)/while/cond/lt"
    assert body["lt"].source == ""


def test_a_line_that_a_kernels_metadata_breaks_is_one_operation():
    body = parse(SPLASH).computations["main"]
    assert list(body) == ["mask", "q", "k", "splash_mha_fwd_residuals.1", "splash_mha_dkv_no_residuals.1", "out"]
    assert body["splash_mha_fwd_residuals.1"].source.endswith("splash_mha_fwd_residuals/pallas_call")
    assert body["out"].is_root
