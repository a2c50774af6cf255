"""Quantisation keeps zero, the order and half a step; what is not finite has no map."""

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.encodings import TensorFormat
from offload.costs.quantization import Affine, Bounds
from offload.records import from_json, to_json

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
FINITE = st.floats(-(2.0**66), 2.0**66, width=32)
TENSORS = arrays.arrays(np.float32, SHAPES, elements=FINITE)
FORMS = st.sampled_from(
    [TensorFormat.AFFINE, TensorFormat.CHANNELS, TensorFormat.SIX_BITS, TensorFormat.FOUR_BITS]
)


@given(array=TENSORS, form=FORMS)
def test_half_a_step_is_lost_at_most(array: Array, form: TensorFormat) -> None:
    affine = Bounds.of(array).affine(form)
    if affine is None:
        assert form is TensorFormat.CHANNELS  # a tensor without channels
        return
    back = affine.restored(affine.quantised(array))
    assert back.dtype == np.float32
    assert back.shape == array.shape
    step = max(affine.scales)
    # The zero point is rounded too, and float32 has 24 digits.
    assert np.all(np.abs(back - array) <= 1.001 * step + 1e-6 * np.abs(array))


@given(array=TENSORS, form=FORMS)
def test_zero_stays_zero(array: Array, form: TensorFormat) -> None:
    affine = Bounds.of(array).affine(form)
    if affine is not None:
        with_zeros = np.where(array > np.median(array) if array.size else array, array, 0)
        back = affine.restored(affine.quantised(with_zeros.astype(np.float32)))
        assert np.all(back[with_zeros == 0] == 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_has_no_map(value: float) -> None:
    array = np.zeros((1, 3, 2, 2), np.float32)
    array[0, 1, 0, 0] = value
    for form in (TensorFormat.AFFINE, TensorFormat.CHANNELS):
        assert Bounds.of(array).affine(form) is None
        assert Bounds.of(array).joined(Bounds.of(np.ones_like(array))).affine(form) is None


@given(value=FINITE)
def test_a_constant_tensor_comes_back(value: float) -> None:
    array = np.full((1, 2, 3, 3), value, np.float32)
    affine = Bounds.of(array).affine(TensorFormat.AFFINE)
    assert affine is not None
    back = affine.restored(affine.quantised(array))
    assert np.allclose(back, array, rtol=1e-2, atol=1e-27)


def test_channels_have_their_own_scale() -> None:
    array = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 100.0)])[None].astype(np.float32)
    affine = Bounds.of(array).affine(TensorFormat.CHANNELS)
    assert affine is not None
    assert affine.scales == pytest.approx((1 / 255, 100 / 255))
    assert np.allclose(affine.restored(affine.quantised(array)), array)


def test_few_steps_leave_room_for_larger_values() -> None:
    seen = np.linspace(-1, 1, 9, dtype=np.float32)
    affine = Bounds.of(seen).affine(TensorFormat.FOUR_BITS)
    assert affine is not None
    many = np.linspace(-1, 1, 999, dtype=np.float32)
    assert len(np.unique(affine.quantised(many))) in (15, 16)  # 0 has a step of its own
    back = affine.restored(affine.quantised(np.float32(3) * seen))
    assert np.abs(back - 3 * seen).max() <= affine.scales[0]


@given(array=TENSORS)
def test_json_keeps_every_bit(array: Array) -> None:
    affine = Bounds.of(array).affine(TensorFormat.AFFINE)
    assert affine is not None
    assert from_json(Affine, to_json(affine)) == affine


@given(first=TENSORS, second=TENSORS)
def test_joined_bounds_hold_both(first: Array, second: Array) -> None:
    both = Bounds.of(first).joined(Bounds.of(second))
    for array in (first, second):
        if array.size:
            assert both.low.min() <= array.min()
            assert array.max() <= both.high.max()
