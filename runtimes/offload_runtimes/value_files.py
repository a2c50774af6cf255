"""Named values in files: arrays in an .npz, sequences and maps as JSON beside it.

Nothing is ever pickled. Text is written as numpy's `<U`, by which `np.load` reads it without
pickling. JSON has only text as keys of a map: numbers are written as text there.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Value
from offload.errors import InputError
from offload.files import staged_file

from offload_runtimes.engine import DTYPES, Array

_NOT_NPZ = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, SyntaxError)


def read_values(path: Path) -> dict[str, Any]:
    """Values by name, from an .npz of arrays or a .json with an object.

    Raises:
        InputError: no such file, or of another kind.
    """
    return _read_json(path) if path.suffix == ".json" else read_arrays(path)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz by name; nothing is unpickled.

    Raises:
        InputError: no such file, or not an .npz of plain arrays.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give an .npz file")
    try:
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise InputError(
                    f"{path} holds one array without a name: write it with"
                    " np.savez(path, NAME=array), NAME being the input's"
                )
            with found:
                arrays = {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise InputError(f"input {path} does not exist: check the path") from None
    except InputError:
        raise
    except _NOT_NPZ as error:
        raise InputError(
            f"{path} is not an .npz file of plain arrays: write it with np.savez(path, NAME=array),"
            " text as array.astype(str)"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"{path} holds {name!r}, which is not an array: write it with np.savez"
            )
    return arrays


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"input {path} does not exist: check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error}): write an object in it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object with a value for each input, by its name")
    return found


def typed(values: Mapping[str, Any], inputs: Iterable[Value]) -> dict[str, Any]:
    """Values as they were read, those from JSON as the inputs declare them.

    Raises:
        InputError: a JSON value does not fit its input.
    """
    declared = {value.name: value.type for value in inputs}
    found = {}
    for name, value in values.items():
        try:
            found[name] = _typed(value, declared.get(name, ""))
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            raise InputError(
                f"input {name!r} is a {declared.get(name)}, which its JSON value does not fit"
                f" ({error})"
            ) from error
    return found


def _typed(value: Any, kind: str) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if kind.startswith("seq("):
        return [_typed(element, kind[4:-1]) for element in value]
    if kind.startswith("map("):
        is_number = not kind.startswith("map(string")
        return {int(key) if is_number else key: entry for key, entry in value.items()}
    return np.array(value, object if kind == "tensor(string)" else DTYPES.get(kind))


def write_values(path: Path, values: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write values by name, whole or not at all: the arrays to an .npz.

    What an .npz cannot hold without pickling (sequences, maps, text that ends with a NUL
    character) goes to a JSON object beside it: `out.json` beside `out.npz`.

    Returns:
        The files written.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses.
    """
    arrays = {name: _plain(value) for name, value in values.items()}
    others = {name: _json(values[name]) for name, array in arrays.items() if array is None}
    with staged_file(path) as staged:
        with zipfile.ZipFile(staged, "w") as archive:
            for name, array in arrays.items():
                if array is not None:
                    # As np.savez does, which takes some names for its own parameters.
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        if not others:
            return (path,)
        beside = path.with_suffix(".json") if path.suffix == ".npz" else Path(f"{path}.json")
        with staged_file(beside) as staged_json:
            staged_json.write_text(json.dumps(others, ensure_ascii=False), encoding="utf-8")
    return path, beside


def _plain(value: Any) -> "np.ndarray[Any, np.dtype[Any]] | None":
    """The array as an .npz holds it without pickling; None where it cannot."""
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype != object:
        return value
    if any(word.endswith("\0") for word in value.flat):  # numpy pads with these
        return None
    return value.astype(str)


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, list):
        return [_json(element) for element in value]
    return value
