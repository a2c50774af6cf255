import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Sample, fit_line, fit_link
from offload.errors import InputError

SIZES = [1_000, 10_000, 100_000, 1_000_000]


@given(st.floats(0, 0.5), st.floats(1e5, 1e9))
def test_an_exact_line_is_found(start_s: float, rate_bps: float) -> None:
    line = fit_line(SIZES, [start_s + size * 8 / rate_bps for size in SIZES])
    assert line.rate_bps == pytest.approx(rate_bps, rel=1e-3)
    assert line.start_s == pytest.approx(start_s, rel=1e-3, abs=1e-5)
    assert line.r2 > 0.999


def test_one_stalled_message_does_not_bend_the_line() -> None:
    sizes = SIZES * 5
    seconds = [0.01 + size * 8 / 1e6 for size in sizes]
    seconds[0] = 30.0
    assert fit_line(sizes, seconds).rate_bps == pytest.approx(1e6)


def test_start_is_never_negative() -> None:
    line = fit_line(SIZES, [max(0.0, size * 8 / 1e6 - 0.01) for size in SIZES])
    assert line.start_s == 0.0


@pytest.mark.parametrize(
    ("sizes", "seconds", "why"),
    [
        ([1, 2], [1.0, 2.0], "at least 3"),
        (SIZES, [4.0, 3.0, 2.0, 1.0], "not slower"),
        (SIZES, [1.0, 1.0, 1.0, 1.0], "not slower|unsteady"),
        (SIZES, [0.1, 9.0, 0.2, 5.0], "unsteady"),
    ],
)
def test_nonsense_is_refused(sizes: list[int], seconds: list[float], why: str) -> None:
    with pytest.raises(InputError, match=why):
        fit_line(sizes, seconds)


def test_directions_are_fitted_apart() -> None:
    link = fit_link([Sample(s, 0.01 + s * 8 / 1e6, 0.02 + s * 8 / 4e6) for s in SIZES])
    assert link.up_bps == pytest.approx(1e6)
    assert link.down_bps == pytest.approx(4e6)
    assert link.down_start_s == pytest.approx(0.02)
    assert link.up_r2 == pytest.approx(1.0)
