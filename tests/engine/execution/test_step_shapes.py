"""StepSizes: every step fits its shape and the inputs' buffer, and there are few shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.execution.step_shapes import FREE_PADDING, PADDING_SHARE, StepShape, StepSizes

SIZES = StepSizes(256, 2048, pads=True)


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (5, 6), (9, 12), (17, 24), (129, 160), (250, 256), (256, 256)])
def test_rows_that_decode_are_rounded_up(num_rows: int, size: int) -> None:
    assert SIZES.decode(num_rows, is_greedy=True, has_long_row=False) == StepShape(size, 0, 0, True)
    assert StepSizes(256, 2048, pads=False).decode(num_rows, is_greedy=True, has_long_row=True).num_decodes == num_rows


def test_no_more_rows_than_there_are() -> None:
    assert StepSizes(5, 64, pads=True).decode(5, is_greedy=False, has_long_row=False).num_decodes == 5
    assert StepSizes(300, 2048, pads=True).decode(270, is_greedy=False, has_long_row=False).num_decodes == 300


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        ((0, 100, 1), (0, 128, 4)),
        ((3, 20, 2), (16, 32, 4)),
        ((200, 1024, 5), (224, 1024, 64)),
        ((0, 2048, 1), (0, 2048, 4)),
        ((0, 1900, 1), (0, 2048, 4)),
    ],
)
def test_prompts_are_rounded_up(step: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    assert SIZES.mixed(*step, is_greedy=False, has_long_row=False) == StepShape(*shape, False)


@pytest.mark.parametrize("step", [(0, 1100, 1), (3, 100, 65), (0, 9000, 2)])
def test_a_step_that_no_size_comes_near_to_stays_as_it_is(step: tuple[int, int, int]) -> None:
    shape = SIZES.mixed(*step, is_greedy=True, has_long_row=True)
    assert shape == StepShape(*step, True, True, is_rounded=False)


@given(st.data(), st.integers(1, 300), st.integers(1, 4096), st.booleans())
def test_every_step_fits(data: st.DataObject, max_rows: int, max_tokens: int, pads: bool) -> None:
    sizes = StepSizes(max_rows, max(max_tokens, max_rows), pads=pads)
    num_rows = data.draw(st.integers(1, max_rows), "rows of prompts")
    num_decodes = data.draw(st.integers(0, max_rows - num_rows), "rows that decode")
    num_tokens = data.draw(st.integers(num_rows, max(num_rows, sizes.max_tokens - num_decodes)), "tokens of prompts")
    shape = sizes.mixed(num_decodes, num_tokens, num_rows, is_greedy=False, has_long_row=False)
    assert num_decodes <= shape.num_decodes <= max_rows
    assert num_rows <= shape.num_rows <= max_rows
    assert 0 <= shape.num_tokens - num_tokens <= max(FREE_PADDING, num_tokens // PADDING_SHARE)
    assert shape.num_decodes + shape.num_tokens <= sizes.max_padded_tokens
    assert shape.num_decodes + shape.num_rows <= max_rows + sizes.max_padding_rows
    assert shape.is_rounded or (shape.num_decodes, shape.num_tokens, shape.num_rows) == (
        num_decodes, num_tokens, num_rows,
    )  # fmt: skip


def test_what_is_expected_is_what_steps_are_rounded_to() -> None:
    expected = list(SIZES.expected())
    assert len(expected) == len(set(expected))
    assert [shape.num_decodes for shape in expected[:4]] == [1, 1, 2, 2]
    for shape in expected:
        again = SIZES.decode(shape.num_decodes, is_greedy=shape.is_greedy, has_long_row=False)
        if not shape.is_decode:
            again = SIZES.mixed(
                shape.num_decodes, shape.num_tokens, shape.num_rows, is_greedy=shape.is_greedy, has_long_row=False
            )
        assert again == shape
    assert list(StepSizes(256, 2048, pads=False).expected()) == []
    narrow = StepSizes(256, 256, pads=True)
    assert all(shape.num_decodes + shape.num_tokens <= narrow.max_padded_tokens for shape in narrow.expected())
    assert {shape.num_decodes for shape in StepSizes(3, 8, pads=True).expected()} == {1, 2, 3}
