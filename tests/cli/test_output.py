"""Progress lines where stderr is not a terminal."""

import pytest
from offload_cli.output import Output


def lines(capsys: pytest.CaptureFixture[str], phrases: list[str]) -> list[str]:
    with Output().steps() as progress:
        for phrase in phrases:
            progress(phrase)
    return capsys.readouterr().err.splitlines()


def test_lines_that_count_collapse(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"running {'LO' if number % 2 else 'CO fp32'} ({number} of 30)" for number in range(30)]
    shown = lines(capsys, ["preparing LO", "preparing CO", *runs, "writing"])
    assert shown == ["preparing LO", "preparing CO", runs[0], "writing"]


def test_lines_that_differ_in_numbers_collapse(capsys: pytest.CaptureFixture[str]) -> None:
    plans = [f"planning for {rate}" for rate in ("900 kbit/s", "1 Mbit/s", "1.247 Mbit/s")]
    assert lines(capsys, [*plans, "reading a", "reading b"]) == [
        plans[0], "reading a", "reading b",
    ]  # fmt: skip


def test_a_line_comes_each_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10_000, 4))
    monkeypatch.setattr("offload_cli.output.time.monotonic", lambda: float(next(now)))
    shown = lines(capsys, [f"running ({number} of 30)" for number in range(30)])
    assert 5 < len(shown) < 16
