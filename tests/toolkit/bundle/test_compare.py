from typing import Any

import numpy as np
import pytest
from offload.bundle.compare import Tolerances, difference
from offload.graph.load import load_model

from tests.edge_cases import EDGE_CASES


def F(values: object) -> np.ndarray[Any, Any]:  # noqa: N802  short for the table
    return np.array(values, np.float32)


BY_NAME = {case.name: case.model for case in EDGE_CASES}


@pytest.mark.parametrize(
    ("want", "got", "expected"),
    [
        (F([1, 2]), F([1, 2]), 0.0),
        (F([1, np.nan]), F([1, np.nan]), 0.0),
        (F([0.0]), F([-0.0]), 0.0),
        (F([1, 4]), F([2, 4]), 0.25),
        (F([1, np.inf]), F([1, 5]), np.inf),
        (F([1, np.nan]), F([1, 5]), np.inf),
        (F([0, 0]), F([0, 1e-9]), np.inf),
        (F([1, 2]), np.array([1.0, 2.0]), np.inf),
        (F([1, 2]), F([[1, 2]]), np.inf),
        (np.array([10, 20]), np.array([10, 21]), 0.05),
        (np.array([2j]), np.array([1j]), 0.5),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), 0.0),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), np.inf),
        ([F([1.0]), F([2.0])], [F([1.0]), F([1.0])], 0.5),
        ([F([1.0])], [F([1.0]), F([1.0])], np.inf),
        ([{"a": 0.5}], [{"a": 0.5}], 0.0),
        ([{"a": 0.5}], [{"b": 0.5}], np.inf),
    ],
)
def test_difference(want: object, got: object, expected: float) -> None:
    assert difference(want, got) == pytest.approx(expected)


def test_bfloat16_is_compared_as_numbers() -> None:
    one, near = (np.array([bits], np.uint16) for bits in (0x3F80, 0x3F81))
    assert difference(one, near, "bfloat16") == pytest.approx(2**-7)
    assert difference(one, near) < 1e-4


def test_softmax_of_many_classes_is_not_lost_in_the_tolerance() -> None:
    """Scores of 1000 classes are near 1e-3: an absolute tolerance of that size detects nothing."""
    rng = np.random.default_rng(0)
    scores = np.exp(rng.standard_normal(1000)).astype(np.float32)
    scores /= scores.sum()
    assert difference(scores, rng.permutation(scores)) > 1e-2


@pytest.mark.parametrize(
    ("name", "dtype", "optimized", "limit"),
    [
        ("metadata", "float", False, 0.0),
        ("metadata", "float", True, 5e-5),
        ("metadata", "int64", True, 0.0),
        ("float16", "float", False, 5e-3),
        ("bfloat16", "float", False, 4e-2),
        ("quantise and dequantise pairs", "float", False, 0.0),
        ("quantise and dequantise pairs", "float", True, 5e-2),
        ("quantise and dequantise pairs", "int64", True, 0.0),
    ],
)
def test_limits(name: str, dtype: str, optimized: bool, limit: float) -> None:
    assert Tolerances.of(load_model(BY_NAME[name])).limit(dtype, optimized) == limit


def test_a_model_that_magnifies_rounding_gets_a_larger_tolerance() -> None:
    tolerances = Tolerances.of(load_model(BY_NAME["metadata"]))
    assert tolerances.limit("float", True, own=1e-3) == pytest.approx(4e-3)
    assert tolerances.limit("float", True, own=0.5) == 2e-2
    assert tolerances.limit("float", True, own=1e-8) == 5e-5
