"""Close what its user did not: when it is collected, and when the process ends.

Threads of gRPC and onnxruntime that outlive the interpreter abort the process or keep it from
ending.
"""

import atexit
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeAlias

Close: TypeAlias = Callable[[], None]
_open: dict[int, Close] = {}
_closing: set[threading.Thread] = set()
_inherited: list[Close] = []  # by fork; their threads are the parent's
_numbers = itertools.count()


def close_at_exit(close: Close, owner: object = None) -> Close:
    """Call `close` when the process ends, the last one opened first; it may be called twice.

    With an owner, `close` is also called once the owner is collected, on a thread of its own:
    the owner may be collected on a thread that `close` waits for. `close` must not refer to it.

    Returns:
        A function that forgets `close`, for when it was called before.
    """
    number = next(_numbers)
    _open[number] = close

    def forget() -> None:
        _open.pop(number, None)

    def close_now() -> None:
        close()
        forget()

    def close_on_thread() -> None:
        close_now()
        _closing.discard(threading.current_thread())

    def collected() -> None:
        if number in _open:
            thread = threading.Thread(target=close_on_thread, name="closing", daemon=True)
            _closing.add(thread)
            thread.start()

    if owner is not None:
        weakref.finalize(owner, collected).atexit = False
    return forget


@atexit.register
def _close_all() -> None:
    while _open:
        _, close = _open.popitem()
        close()
    for thread in tuple(_closing):  # may have forgotten what it still closes
        thread.join()


def _forget_all() -> None:
    """In a child of fork: what the parent opened is not the child's to close."""
    _inherited.extend(_open.values())
    _open.clear()
    _closing.clear()


os.register_at_fork(after_in_child=_forget_all)
