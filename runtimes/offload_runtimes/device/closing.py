"""Close at the end of the process what its user forgot to close."""

import atexit
import weakref
from typing import Protocol


class Closable(Protocol):
    """Something with threads and connections of its own."""

    def close(self) -> None:
        """End them; may be called twice."""


_open: "list[weakref.ref[Closable]]" = []


def close_at_exit(one: Closable) -> None:
    """Close it when the process ends, last opened first; it may be collected before.

    Threads of gRPC and onnxruntime that outlive the interpreter abort the process.
    """
    _open[:] = [held for held in _open if held() is not None]
    _open.append(weakref.ref(one))


@atexit.register
def _close_all() -> None:
    while _open:
        one = _open.pop()()
        if one is not None:
            one.close()
