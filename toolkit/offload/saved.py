"""Read the JSON files that our own verbs write."""

import json
from pathlib import Path
from typing import Any

from offload.errors import InputError


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
