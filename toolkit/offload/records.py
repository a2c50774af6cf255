"""Convert dataclasses to JSON and back, with a type check of every value.

Written by hand, although msgspec and cattrs exist: the device imports this module, and all
imports of a device together may take 0.2 s and 30 MB.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from offload.errors import InputError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A value that `json.dumps` takes: dataclasses become objects, tuples arrays, enums values.

    A class's own `to_json` method is used where it has one.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return value.to_json() if hasattr(value, "to_json") else fields_to_json(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def fields_to_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as a JSON object, for a `to_json` method that adds to them."""
    return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}


def from_json(kind: type[T], value: object) -> T:
    """Read a dataclass from the JSON that `to_json` returns.

    Fields with a default may be absent, unknown keys are ignored. An int is accepted where a float
    is declared; a bool is accepted as neither. A class's own `from_json` is used where it has one.

    Raises:
        TypeError: a value is missing or not of the declared type; the message names the field.
    """
    if hasattr(kind, "from_json"):
        return cast(T, cast(Any, kind).from_json(value))
    return fields_from_json(kind, value)


def fields_from_json(kind: type[T], value: object, where: str = "") -> T:
    """Read a dataclass from a JSON object of its fields, for a `from_json` that checks more."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where or kind.__name__} must be an object, {_got(value)}")
    arguments = {}
    for name, (declared, is_required) in _fields(cast(Any, kind)).items():
        if name in value:
            arguments[name] = _read(declared, value[name], f"{where}.{name}".lstrip("."))
        elif is_required:
            raise TypeError(f"{where or kind.__name__} has no {name}")
    return kind(**arguments)


def _read(declared: Any, value: object, where: str) -> Any:
    origin = get_origin(declared)
    if declared is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(get_args(declared), value, where)
    if origin is not None:
        return _read_container(declared, value, where)
    if is_dataclass(declared):
        own = getattr(declared, "from_json", None)
        return own(value) if own else fields_from_json(cast(Any, declared), value, where)
    if issubclass(declared, Enum) and value in [member.value for member in declared]:
        return declared(value)
    if declared is float and type(value) is int:
        return float(value)
    if type(value) is declared:
        return value
    raise TypeError(f"{where} must be {declared.__name__}, {_got(value)}")


def _read_container(declared: Any, value: object, where: str) -> Any:
    """Read a tuple or a mapping, item by item."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(kind, item, f"{where}[{place}]") for place, (kind, item) in pairs)
    elif issubclass(origin, Mapping) and isinstance(value, Mapping):
        key_kind, kind = arguments
        return {
            _read(key_kind, key, where): _read(kind, item, f"{where}.{key}")
            for key, item in value.items()
        }
    expected = "an array" if origin is tuple else "an object"
    raise TypeError(f"{where} must be {expected} ({declared}), {_got(value)}")


def _read_union(options: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    errors = []
    for option in options:
        try:
            return _read(option, value, where)
        except TypeError as error:
            if option is not types.NoneType:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise TypeError(f"{where} must be {names}, {_got(value)}")


def _got(value: object) -> str:
    return f"got {str(value)[:40]!r}"


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Declared type of each field, and whether it must be present."""
    types = get_type_hints(kind)
    return {
        field.name: (
            types[field.name],
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
    }


def read_version(kind: type[T], value: object, version: int, *, name: str, remedy: str) -> T:
    """Read a dataclass from a saved object with a format number.

    Args:
        kind: the dataclass.
        value: the saved object.
        version: the format number that is read.
        name: its name in messages: `profile`.
        remedy: how to make a new one, for messages.

    Raises:
        InputError: another format number, or a field is missing or has the wrong type.
    """
    number = value.get("format") if isinstance(value, Mapping) else None
    if number != version:
        raise InputError(f"{name} has format {number!r}, expected {version}: {remedy}")
    try:
        return fields_from_json(kind, value)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{name} is damaged ({error}): {remedy}") from error


def read_object(path: Path, kind: str, verb: str) -> dict[str, Any]:
    """The JSON object of a file written by one of our commands.

    Args:
        path: the file.
        kind: the expected kind of file, for error messages: `profile`.
        verb: the command that writes it: `offload profile -o`.

    Raises:
        InputError: the file does not exist or does not hold a JSON object.
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
