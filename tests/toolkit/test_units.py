import pytest
from offload.errors import InputError
from offload.units import format_bps, format_bytes, format_s, parse_duration_s, parse_rate_bps


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("18.88 Mbit/s", 18.88e6),
        ("20mbps", 20e6),
        ("2.5 MB/s", 20e6),
        ("900 kbit/s", 9e5),
        ("1 Gbps", 1e9),
        ("64 bit/s", 64.0),
    ],
)
def test_rates(text: str, rate_bps: float) -> None:
    assert parse_rate_bps(text) == pytest.approx(rate_bps)


@pytest.mark.parametrize("text", ["", "20", "fast", "-1 Mbit/s", "0 bit/s", "1 Mbit", "1e3 bit/s"])
def test_bad_rates(text: str) -> None:
    with pytest.raises(InputError, match="not understood"):
        parse_rate_bps(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10 ms", 0.01), ("1.5s", 1.5), ("200us", 2e-4), ("2 min", 120.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


def test_bad_duration() -> None:
    with pytest.raises(InputError, match="like '10 ms'"):
        parse_duration_s("soon")


def test_printing_keeps_three_digits() -> None:
    assert [format_s(s) for s in (0, 3.2e-8, 0.0123, 0.123, 1, 99.96)] == [
        "0 s",
        "32.0 ns",
        "12.3 ms",
        "123 ms",
        "1.00 s",
        "100 s",
    ]
    assert [format_bytes(b) for b in (12, 602_112, 5.4e6)] == ["12 B", "602 kB", "5.40 MB"]
    assert [format_bps(r) for r in (500, 18.88e6, 1e9)] == ["500 bit/s", "18.88 Mbit/s", "1 Gbit/s"]
