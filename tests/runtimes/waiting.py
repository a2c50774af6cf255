"""Wait for the work of another thread."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool]) -> None:
    """Return when a condition holds; fail after 20 s."""
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
