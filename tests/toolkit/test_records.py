"""Types of values that were read, checked against their classes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import pytest
from offload.records import check_kinds


class Way(StrEnum):
    UP = "up"


@dataclass(frozen=True)
class Inner:
    share: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Outer:
    count: int
    way: Way
    inner: Inner | None
    pair: tuple[int, str]
    table: Mapping[str, float]
    other: Any = None


RIGHT = Outer(1, Way.UP, Inner(1, ("a", "b")), (2, "c"), {"d": 0.5}, object())


def test_what_is_right_passes() -> None:
    check_kinds(RIGHT, Outer)
    check_kinds(replace(RIGHT, inner=None, table={}), Outer)
    check_kinds((RIGHT, RIGHT), tuple[Outer, ...])
    check_kinds([], Any)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 1.0},
        {"count": True},
        {"way": "up"},
        {"inner": Inner(1, ("a", 2))},  # type: ignore[arg-type]
        {"inner": Inner("1", ())},  # type: ignore[arg-type]
        {"inner": {"share": 1}},
        {"pair": (1, "a", "b")},
        {"pair": [1, "a"]},
        {"pair": None},
        {"table": {"d": "x"}},
        {"table": {1: 1.0}},
        {"table": [("d", 1.0)]},
    ],
)
def test_what_is_wrong_anywhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="is no"):
        check_kinds(replace(RIGHT, **change), Outer)
