"""The link: what a byte costs in each direction, g = c + w / b, and how it is fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.errors import InputError
from offload.records import read_object
from offload.units import format_bps, format_s, parse_duration_s, parse_rate_bps

LINK_FORMAT = 1
MIN_R2 = 0.9

# TCP, IP and Ethernet headers of full-sized segments; gRPC's own framing is below 1 %.
HEADER_OVERHEAD = 1.046


@dataclass(frozen=True, slots=True)
class Link:
    """Cost of sending one message each way.

    Attributes:
        up_bps: bandwidth from device to server, bits per second.
        down_bps: bandwidth from server to device, bits per second.
        up_start_s: seconds per message upwards whatever its size (the paper's c).
        down_start_s: the same downwards.
        overhead: bytes on the wire per byte of payload; 1 when the bandwidth was measured on
            payloads.
        up_r2: coefficient of determination of the fit upwards; None for a preset.
        down_r2: the same downwards.
    """

    up_bps: float
    down_bps: float
    up_start_s: float = 0.0
    down_start_s: float = 0.0
    overhead: float = 1.0
    up_r2: float | None = None
    down_r2: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.up_bps < float("inf") and 0 < self.down_bps < float("inf")):
            raise InputError("link bandwidth must be positive and finite in both directions")
        if self.up_start_s < 0 or self.down_start_s < 0 or self.overhead < 1:
            raise InputError("link start-up times must not be negative, nor the overhead below 1")

    def upload_s(self, size_bytes: float) -> float:
        """Seconds to send a message of so many bytes to the server."""
        return self.up_start_s + size_bytes * self.overhead * 8 / self.up_bps

    def download_s(self, size_bytes: float) -> float:
        """Seconds to send a message of so many bytes to the device."""
        return self.down_start_s + size_bytes * self.overhead * 8 / self.down_bps

    def describe(self) -> str:
        """One readable phrase: `18.9 Mbit/s` or `up 5 Mbit/s + 10 ms, down 20 Mbit/s + 10 ms`."""
        up = _describe(self.up_bps, self.up_start_s)
        down = _describe(self.down_bps, self.down_start_s)
        return up if up == down else f"up {up}, down {down}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": LINK_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Link":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, an unknown or missing field, or a wrong number.
        """
        names = {field.name for field in fields(cls)}
        if value.get("format") != LINK_FORMAT or not names >= value.keys() - {"format"}:
            raise InputError("link file is of another version: probe the link again")
        try:
            return cls(**{name: value[name] for name in names & value.keys()})
        except TypeError as error:
            raise InputError(f"link file is damaged ({error}): probe the link again") from error


def _describe(rate_bps: float, start_s: float) -> str:
    return format_bps(rate_bps) + (f" + {format_s(start_s)}" if start_s else "")


def _preset(rate_bps: float) -> Link:
    return Link(rate_bps, rate_bps, overhead=HEADER_OVERHEAD)


# The paper's networks (section VI) and two faster ones.
PRESETS: Mapping[str, Link] = {
    "3g": _preset(1.1e6),
    "4g": _preset(5.85e6),
    "wifi": _preset(18.88e6),
    "50mbit": _preset(50e6),
    "100mbit": _preset(100e6),
}


def parse_link(text: str) -> Link:
    """A link from a preset's name, a probed link's file, or `RATE[,DELAY]`.

    `20 Mbit/s` and `20 Mbit/s,10 ms` are the same both ways; `5 Mbit/s/20 Mbit/s,10 ms` gives
    up and down apart.

    Raises:
        InputError: none of these.
    """
    preset = PRESETS.get(text.strip().lower())
    if preset:
        return preset
    if text.endswith(".json"):
        return load_link(Path(text))
    rates, _, delay = text.partition(",")
    start_s = parse_duration_s(delay) if delay.strip() else 0.0
    try:
        up, down = _parse_rates(rates)
    except InputError as error:
        known = ", ".join(PRESETS)
        raise InputError(
            f"link {text!r} is not understood: use one of {known}, a rate like '20 Mbit/s,10 ms',"
            " or a file written by `offload probe`"
        ) from error
    return Link(up, down, start_s, start_s, HEADER_OVERHEAD)


def _parse_rates(text: str) -> tuple[float, float]:
    parts = text.split("/")
    if len(parts) == 4:  # a rate's own unit holds one slash: "5 Mbit/s/20 Mbit/s"
        return parse_rate_bps("/".join(parts[:2])), parse_rate_bps("/".join(parts[2:]))
    rate = parse_rate_bps(text)
    return rate, rate


def load_link(path: Path) -> Link:
    """Read a link file.

    Raises:
        InputError: no such file, not a link of this version, or one too unsteady to plan with.
    """
    link = Link.from_json(read_object(path, "link file", "offload probe -o"))
    worst = min((r2 for r2 in (link.up_r2, link.down_r2) if r2 is not None), default=1.0)
    if worst < MIN_R2:
        raise InputError(unsteady(worst))
    return link


def unsteady(r2: float) -> str:
    """The sentence for a link whose times a line explains too little of."""
    return (
        f"link is too unsteady to model (r2 = {r2:.2f}, at least {MIN_R2} is needed):"
        " probe again when it is quieter"
    )


MIN_SIZES = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One message that was timed.

    Attributes:
        size_bytes: its payload.
        up_s: seconds to reach the server.
        down_s: seconds for a message of the same size to come back.
    """

    size_bytes: int
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class LineFit:
    """A fitted line: start-up seconds, bits per second, coefficient of determination."""

    start_s: float
    rate_bps: float
    r2: float


def fit_line(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> LineFit:
    """Least squares on the medians of each size, c not below zero.

    Repeats of a size are first reduced to their median, so one stalled message does not bend
    the line; where the free intercept is negative, the line is refitted through the origin.
    O(n log n) in the number of samples.

    Raises:
        InputError: fewer than three sizes, a rate that isn't positive, or r2 below 0.9.
    """
    sizes, medians = _medians(sizes_bytes, seconds)
    if len(sizes) < MIN_SIZES:
        raise InputError(f"link fit needs at least {MIN_SIZES} message sizes, got {len(sizes)}")
    slope, start_s = _least_squares(sizes, medians)
    if slope <= 0:
        raise InputError("link fit failed: larger messages were not slower; probe again, larger")
    residual = float(np.sum((medians - start_s - slope * sizes) ** 2))
    spread = float(np.sum((medians - medians.mean()) ** 2))
    r2 = 1.0 - residual / spread if spread > 0 else 0.0
    if r2 < MIN_R2:
        raise InputError(unsteady(r2))
    return LineFit(start_s, 8 / slope, r2)


def fit_link(samples: Sequence[Sample]) -> Link:
    """A link from timed messages, both directions fitted apart.

    Raises:
        InputError: as `fit_line`.
    """
    sizes = [sample.size_bytes for sample in samples]
    up = fit_line(sizes, [sample.up_s for sample in samples])
    down = fit_line(sizes, [sample.down_s for sample in samples])
    return Link(
        up.rate_bps,
        down.rate_bps,
        up.start_s,
        down.start_s,
        up_r2=up.r2,
        down_r2=down.r2,
    )


def _medians(
    sizes_bytes: Sequence[float], seconds: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    by_size: dict[float, list[float]] = {}
    for size, second in zip(sizes_bytes, seconds, strict=True):
        by_size.setdefault(float(size), []).append(second)
    sizes = sorted(by_size)
    return np.array(sizes), np.array([float(np.median(by_size[size])) for size in sizes])


def _least_squares(
    sizes: NDArray[np.float64],
    seconds: NDArray[np.float64],
) -> tuple[float, float]:
    slope, start_s = (float(value) for value in np.polyfit(sizes, seconds, 1))
    if start_s < 0:
        return float(sizes @ seconds / (sizes @ sizes)), 0.0
    return slope, start_s
