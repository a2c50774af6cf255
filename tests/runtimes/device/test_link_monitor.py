"""What pings tell of the link while their answers are awaited."""

from offload_runtimes.device.link_monitor import Liveness


def test_the_oldest_ping_tells_how_long_bytes_have_been_on_their_way() -> None:
    pulse = Liveness(patience_s=1.0)
    assert pulse.waiting(10.0) == (0, 0.0)
    pulse.sent(1000)
    pulse.asked(1, 10.0)
    pulse.sent(500)
    pulse.asked(2, 10.5)
    assert pulse.waiting(11.0) == (1000, 1.0)
    pulse.answered(1)
    assert pulse.waiting(11.0) == (500, 0.5)
    pulse.answered(2)
    assert pulse.waiting(11.0) == (0, 0.0)
    pulse.asked(3, 12.0)
    assert pulse.waiting(12.5) == (0, 0.5), "nothing is before it"
