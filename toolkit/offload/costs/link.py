"""The link model: transfer time g = c + w / b in each direction."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from offload.errors import InputError
from offload.records import fields_from_json, fields_to_json, read_object
from offload.units import format_bps, format_s, parse_duration_s, parse_rate_bps

LINK_FORMAT = 1
MIN_R2 = 0.9

# TCP, IP and Ethernet headers of full-sized segments; gRPC's own framing is below 1 %.
HEADER_OVERHEAD = 1.046


@dataclass(frozen=True, slots=True)
class Link:
    """Transfer times between device and server.

    Attributes:
        up_bps: bandwidth from device to server, bits per second.
        down_bps: bandwidth from server to device, bits per second.
        up_start_s: seconds per upload message, independent of its size (the paper's c).
        down_start_s: seconds per download message, independent of its size.
        overhead: bytes on the wire per byte of payload; 1 when the bandwidth was measured on
            payloads.
        up_r2: coefficient of determination of the upload fit; None for a preset.
        down_r2: coefficient of determination of the download fit; None for a preset.
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
            raise InputError("link start-up times must be ≥ 0 and the overhead ≥ 1")

    def upload_s(self, size_bytes: float) -> float:
        """Seconds to send a message of this size to the server."""
        return self.up_start_s + size_bytes * self.overhead * 8 / self.up_bps

    def download_s(self, size_bytes: float) -> float:
        """Seconds to send a message of this size to the device."""
        return self.down_start_s + size_bytes * self.overhead * 8 / self.down_bps

    def describe(self) -> str:
        """The link in words: `18.9 Mbit/s` or `up 5 Mbit/s + 10 ms, down 20 Mbit/s + 10 ms`."""
        up, down = (
            format_bps(rate_bps) + (f" + {format_s(start_s)}" if start_s else "")
            for rate_bps, start_s in (
                (self.up_bps, self.up_start_s),
                (self.down_bps, self.down_start_s),
            )
        )
        return up if up == down else f"up {up}, down {down}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": LINK_FORMAT, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Link":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, or a field is missing or has the wrong type.
            TypeError: the value is not an object.
        """
        if not isinstance(value, Mapping):
            raise TypeError(f"a link must be an object, got {value!r}")
        if value.get("format") != LINK_FORMAT:
            raise InputError("link file is of another version: probe the link again")
        unknown = value.keys() - {"format", *(field.name for field in fields(cls))}
        if unknown:
            raise InputError(f"link file has an unknown key {min(unknown)!r}: probe the link again")
        try:
            return fields_from_json(cls, value)
        except TypeError as error:
            raise InputError(f"link file is damaged ({error}): probe the link again") from error


# The paper's networks (section VI) and two faster ones.
PRESETS: Mapping[str, Link] = {
    name: Link(rate_bps, rate_bps, overhead=HEADER_OVERHEAD)
    for name, rate_bps in (
        ("3g", 1.1e6),
        ("4g", 5.85e6),
        ("wifi", 18.88e6),
        ("50mbit", 50e6),
        ("100mbit", 100e6),
    )
}


def parse_link(text: str) -> Link:
    """Parse a link: a preset's name, the file of a probed link, or `RATE[,DELAY]`.

    `20 Mbit/s` and `20 Mbit/s,10 ms` hold for both directions; `5 Mbit/s/20 Mbit/s,10 ms` gives
    upload and download separately.

    Raises:
        InputError: the text has none of these forms.
    """
    preset = PRESETS.get(text.strip().lower())
    if preset:
        return preset
    if text.endswith(".json"):
        return load_link(Path(text))
    rates, _, delay = text.partition(",")
    start_s = parse_duration_s(delay) if delay.strip() else 0.0
    parts = rates.split("/")
    if len(parts) == 4:  # the unit of a rate has a slash of its own: "5 Mbit/s/20 Mbit/s"
        up, down = "/".join(parts[:2]), "/".join(parts[2:])
    else:
        up = down = rates
    try:
        return Link(parse_rate_bps(up), parse_rate_bps(down), start_s, start_s, HEADER_OVERHEAD)
    except InputError as error:
        raise InputError(
            f"link {text!r} is not understood: use one of {', '.join(PRESETS)}, a rate like"
            " '20 Mbit/s,10 ms', or a file written by `offload probe`"
        ) from error


def is_range(text: str) -> bool:
    """Whether a text is a range for `parse_links`, not a file's path with dots."""
    return ".." in text and not text.endswith(".json")


def parse_links(text: str, like: Link, points: int) -> list[Link]:
    """Links from `1..100Mbit/s`, evenly spaced by ratio; the rest is copied from a given link.

    Either end may be the name of a preset, like `4g..wifi`: its upload rate is taken. The download
    rate keeps its ratio to the upload rate.

    Raises:
        InputError: not a range of two rates, the smaller first.
    """
    first, dots, last = text.partition("..")
    unit = last.strip().lstrip("0123456789. ")
    first = first.strip() if first.strip()[-1:].isalpha() else f"{first.strip()} {unit}"
    if not dots:
        raise InputError(f"range {text!r} is not understood: write it like '1..100 Mbit/s'")
    low, high = (
        PRESETS[name].up_bps if (name := end.strip().lower()) in PRESETS else parse_rate_bps(end)
        for end in (first, last)
    )
    if not low < high:
        raise InputError(f"range {text!r} must go from the slower link to the faster one")
    down = like.down_bps / like.up_bps
    rates = [low * (high / low) ** (index / (points - 1)) for index in range(points)]
    return [
        replace(like, up_bps=rate, down_bps=rate * down, up_r2=None, down_r2=None) for rate in rates
    ]


def load_link(path: Path) -> Link:
    """Read a link file.

    Raises:
        InputError: the file does not exist, is not a link of this version, or holds a link that
            is too unsteady to plan with.
    """
    link = Link.from_json(read_object(path, "link file", "offload probe -o"))
    check_steady(min((r2 for r2 in (link.up_r2, link.down_r2) if r2 is not None), default=1.0))
    return link


def check_steady(r2: float) -> None:
    """Raise an InputError if a fitted line is too far from its measurements to plan with."""
    if r2 < MIN_R2:
        raise InputError(
            f"link is too unsteady to model (r2 = {r2:.2f}, at least {MIN_R2} is needed):"
            " probe again when it is quieter"
        )
