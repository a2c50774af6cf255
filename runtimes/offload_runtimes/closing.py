"""Close forgotten sessions and servers: when they are garbage collected, or at process exit.

Threads of gRPC and onnxruntime that outlive the interpreter abort the process or keep it from
exiting.
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
_inherited: list[Close] = []  # from the parent of a fork, which owns their threads
_numbers = itertools.count()


def close_at_exit(close: Close, owner: object = None) -> Close:
    """Call `close` at process exit, in reverse order of opening; `close` may be called twice.

    With an owner, `close` is also called when the owner is garbage collected. This happens on a
    thread of its own, as `close` may wait for the thread on which the owner is collected. `close`
    must not refer to the owner.

    Returns:
        A function that removes `close` again, to be called after `close` itself.
    """
    number = next(_numbers)
    _open[number] = close

    def forget() -> None:
        _open.pop(number, None)

    def close_on_thread() -> None:
        close()
        forget()
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
    for thread in tuple(_closing):  # their entries may be removed already
        thread.join()


def _forget_all() -> None:
    """After a fork, in the child: only the parent closes what it opened."""
    _inherited.extend(_open.values())
    _open.clear()
    _closing.clear()


os.register_at_fork(after_in_child=_forget_all)
