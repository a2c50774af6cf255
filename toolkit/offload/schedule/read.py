"""Read an instance from a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offload.errors import InputError
from offload.schedule.instance import Instance


def read_instance(path: str | Path) -> Instance:
    """The instance in a file that holds `{"layers": {name: {...}}, "edges": [[a, b], ...]}`.

    Raises:
        InputError: not JSON, a name given twice, or anything `Instance.from_json` refuses.
        OSError: the file can't be read.
    """
    data = Path(path).read_bytes()
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        return Instance.from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:
        raise InputError(
            f"{path} is nested too deeply to be a graph: give layers and edges"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give layers and edges") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InputError(f"the name {name!r} is given twice: names must differ")
            seen.add(name)
    return table
