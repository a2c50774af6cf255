"""Read the JSON files that the commands write, and check the type of every value."""

import json
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from offload.errors import InputError


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


def read_object(path: Path, kind: str, verb: str) -> dict[str, Any]:
    """The JSON object in a file that one of our verbs writes.

    Args:
        path: the file.
        kind: what it should be, for the message: `profile`.
        verb: what writes it: `offload profile -o`.

    Raises:
        InputError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: write it with `{verb}`") from error
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a {kind}: write it with `{verb}`")
    return value
