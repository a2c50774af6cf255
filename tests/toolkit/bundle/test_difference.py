"""How far arrays are apart."""

import math

import numpy as np
import pytest
from offload.bundle.compare import difference


def test_differences_are_relative_and_strict_about_kind() -> None:
    ones = np.ones(3, np.float32)
    assert difference(ones, ones) == 0
    assert difference(ones * 1e-3, ones * 1.1e-3) == pytest.approx(0.1, rel=1e-3)
    assert difference(ones, np.ones(4, np.float32)) == math.inf
    assert difference(ones, np.ones(3)) == math.inf
    holes = np.array([1, np.nan, np.inf], np.float32)
    assert difference(holes, holes) == 0
    assert difference(ones, holes) == math.inf


def test_whole_and_complex_numbers_differ_too() -> None:
    assert difference(np.array([10, 20]), np.array([10, 15])) == 0.25
    assert difference(np.array([2j]), np.array([1j])) == 0.5
    assert difference(np.zeros(2), np.array([0.0, 1e-9])) == math.inf
