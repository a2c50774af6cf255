"""Dataclasses to JSON and back; every value is checked against its class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import pytest
from offload.errors import InputError
from offload.records import from_json, read_version, to_json


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
    size: int | str | None = None
    other: Any = None
    inners: tuple[Inner, ...] = field(default=())


@dataclass(frozen=True)
class Own:
    seconds_s: float

    def to_json(self) -> list[float]:
        return [self.seconds_s]

    @classmethod
    def from_json(cls, value: list[float]) -> "Own":
        return cls(value[0])


@dataclass(frozen=True)
class Holder:
    own: Own


RIGHT = Outer(1, Way.UP, Inner(1.5, ("a", "b")), (2, "c"), {"d": 0.5}, "n", [1], (Inner(1.0, ()),))


@pytest.mark.parametrize(
    "value", [RIGHT, replace(RIGHT, inner=None, table={}, size=3), replace(RIGHT, inners=())]
)
def test_what_is_written_is_read(value: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_a_class_may_have_a_form_of_its_own() -> None:
    assert to_json(Holder(Own(2.0))) == {"own": [2.0]}
    assert from_json(Holder, {"own": [2.0]}) == Holder(Own(2.0))


@dataclass(frozen=True)
class Named:
    name: str

    @classmethod
    def from_json(cls, value: Mapping[str, str]) -> "Named":
        return cls(value.get("name", ""))


@dataclass(frozen=True)
class MayBeNamed:
    named: Named | None


def test_none_is_read_where_a_class_with_its_own_from_json_is_optional() -> None:
    assert from_json(MayBeNamed, {"named": None}) == MayBeNamed(None)


def test_defaults_may_be_absent_and_unknown_keys_are_ignored() -> None:
    value = to_json(RIGHT) | {"more": 1}
    del value["size"], value["other"], value["inners"]
    assert from_json(Outer, value) == replace(RIGHT, size=None, other=None, inners=())


def test_an_int_is_read_as_a_float() -> None:
    read = from_json(Inner, {"share": 1, "names": []})
    assert type(read.share) is float


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"count": 1.0}, "count must be int"),
        ({"count": True}, "count must be int"),
        ({"way": "down"}, "way must be Way, got 'down'"),
        ({"inner": {"share": 1, "names": ["a", 2]}}, r"inner.names\[1\] must be str, got '2'"),
        ({"inner": {"share": "1", "names": []}}, "inner.share must be float"),
        ({"inner": {"share": 1}}, "inner has no names"),
        ({"inner": 7}, "inner must be an object"),
        ({"pair": [1, "a", "b"]}, "pair must be an array"),
        ({"pair": ["a", 1]}, r"pair\[0\] must be int"),
        ({"pair": None}, "pair must be an array"),
        ({"table": {"d": "x"}}, "table.d must be float"),
        ({"table": [("d", 1.0)]}, "table must be an object"),
        ({"size": 1.5}, "size must be int or str or NoneType"),
        ({"inners": [{"share": 1.0}]}, r"inners\[0\] has no names"),
    ],
)
def test_what_is_wrong_anywhere_is_refused(change: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        from_json(Outer, to_json(RIGHT) | change)
    with pytest.raises(TypeError, match="Outer must be an object"):
        from_json(Outer, [])


def test_a_saved_object_of_another_version_or_damaged_is_one_sentence() -> None:
    saved = {"format": 2, "share": 1.0, "names": ["a"]}
    about = {"name": "inner", "remedy": "make it again"}
    assert read_version(Inner, saved, 2, **about) == Inner(1.0, ("a",))
    for value, said in (
        ({**saved, "format": 1}, "inner has format 1, expected 2: make it again"),
        ([], "inner has format None, expected 2: make it again"),
        ({**saved, "share": "x"}, "inner is damaged .*share must be float.*: make it again"),
    ):
        with pytest.raises(InputError, match=said):
            read_version(Inner, value, 2, **about)
