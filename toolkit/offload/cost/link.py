"""The link noun: what a byte costs in each direction, g = c + w / b.

The linear model is the paper's (Duan & Wu, section III-B): a start-up time per message plus
bytes over bandwidth.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from offload.errors import InputError
from offload.saved import read_object
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
