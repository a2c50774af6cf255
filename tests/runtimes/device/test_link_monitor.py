"""How the link monitor uses pings that are not answered yet."""

from offload.costs.link import Link
from offload_runtimes.device.link_monitor import LinkMonitor


def test_the_oldest_ping_shows_how_long_bytes_have_been_under_way() -> None:
    monitor = LinkMonitor(Link(1e6, 1e6))
    assert monitor.waiting(10.0) == (0, 0.0)
    monitor.sent(1000)
    monitor.pinged(1, 10.0)
    monitor.sent(500)
    monitor.pinged(2, 10.5)
    assert monitor.waiting(11.0) == (1000, 1.0)
    monitor.ponged(1)
    assert monitor.waiting(11.0) == (500, 0.5)
    monitor.ponged(2)
    assert monitor.waiting(11.0) == (0, 0.0)
    monitor.pinged(3, 12.0)
    assert monitor.waiting(12.5) == (0, 0.5), "nothing is before it"
