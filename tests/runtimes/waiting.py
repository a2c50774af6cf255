"""Waiting for what another thread will do."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool]) -> None:
    """Return once it holds; fail when it has not for very long."""
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
