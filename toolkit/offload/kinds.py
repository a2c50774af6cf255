"""Whether a value that was read is what its class declares: types checked at the door, once."""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_kinds(value: object, declared: Any) -> None:
    """Refuse a value that is not of the declared type, all the way down.

    Knows what frozen dataclasses are made of here: plain types, enumerations, tuples, mappings,
    unions, and other dataclasses. An int passes for a float; a bool for neither.

    Raises:
        TypeError: naming the value and the type.
    """
    if not _fits(value, declared):
        raise TypeError(f"{str(value)[:40]!r} is no {getattr(declared, '__name__', declared)}")
    for part, kind in _parts(value, declared):
        check_kinds(part, kind)


def _fits(value: object, declared: Any) -> bool:
    origin = get_origin(declared)
    if declared is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, option) for option in get_args(declared))
    if origin is tuple:
        kinds = get_args(declared)
        right = kinds[-1] is ... or len(kinds) == len(value if isinstance(value, tuple) else ())
        return isinstance(value, tuple) and right
    if declared in (int, float):
        return isinstance(value, int | declared) and not isinstance(value, bool)
    return isinstance(value, origin or declared)


def _is(value: object, declared: Any) -> bool:
    try:
        check_kinds(value, declared)
    except TypeError:
        return False
    return True


def _parts(value: object, declared: Any) -> list[tuple[object, Any]]:
    """What a value is made of, each with its own type."""
    origin, kinds = get_origin(declared), get_args(declared)
    if origin is tuple and isinstance(value, tuple):
        repeated = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return list(zip(value, repeated, strict=True))
    if isinstance(value, Mapping) and len(kinds) == 2:
        return [pair for key, held in value.items() for pair in ((key, kinds[0]), (held, kinds[1]))]
    if is_dataclass(value) and origin is None and not isinstance(value, type):
        return [(getattr(value, name), kind) for name, kind in _fields(type(value)).items()]
    return []


@cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
