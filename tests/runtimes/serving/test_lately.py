"""Which segments may run on the thread that reads a session's messages."""

from offload_runtimes.serving.bundles import RunTimes


def test_short_is_what_was_short_on_no_fewer_bytes() -> None:
    lately = RunTimes()
    assert not lately.is_short("a", 0), "nobody knows yet"
    lately.took("a", 1000, 0.0001)
    assert lately.is_short("a", 1000)
    assert not lately.is_short("a", 1001), "it may take any time"
    assert not lately.is_short("b", 10)
    lately.took("a", 10, 0.1)
    assert not lately.is_short("a", 10)
