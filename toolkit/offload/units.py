"""Parse and print quantities in SI units: seconds, bytes, bits per second.

Internally every quantity is a float or int in the base unit, with the unit in its name
(`_s`, `_bytes`, `_bps`); prefixes are decimal (1 Mbit = 10**6 bit, 1 kB = 10**3 bytes).
"""

import re
from collections.abc import Mapping

from offload.errors import InputError

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "g": 1e9, "G": 1e9}
_BIT_RATES = {"bit/s": 1.0, "bps": 1.0, "Bit/s": 1.0, "BPS": 1.0, "B/s": 8.0}
_RATES = {p + unit: n * scale for p, n in _PREFIXES.items() for unit, scale in _BIT_RATES.items()}
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}
_BYTES = {f"{prefix}B": scale for prefix, scale in _PREFIXES.items()}
_ENERGIES = {"mJ": 1e-3, "J": 1.0}


def parse_rate_bps(text: str) -> float:
    """Bits per second from text such as `18.88 Mbit/s`, `20mbps` or `2.5 MB/s`.

    Raises:
        InputError: not a positive number with a unit of rate.
    """
    return _parse("rate", text, _RATES, "20 Mbit/s", positive=True)


def parse_duration_s(text: str) -> float:
    """Seconds from text such as `10 ms`, `1.5s` or `200us`.

    Raises:
        InputError: not a number with a unit of time.
    """
    return _parse("duration", text, _DURATIONS, "10 ms")


def parse_bytes(text: str) -> float:
    """Bytes from text such as `64 MB`, `1.5GB` or `300 kB`.

    Raises:
        InputError: not a number with a unit of size.
    """
    return _parse("size", text, _BYTES, "64 MB")


def parse_energy_j(text: str) -> float:
    """Joules from text such as `250 mJ` or `1.5 J`.

    Raises:
        InputError: not a number with a unit of energy.
    """
    return _parse("energy", text, _ENERGIES, "250 mJ")


def _parse(
    quantity: str, text: str, units: Mapping[str, float], example: str, positive: bool = False
) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Zµ/]+)\s*", text)
    if not match or match[2] not in units or (positive and float(match[1]) <= 0):
        raise InputError(f"{quantity} {text!r} is not understood: write it like {example!r}")
    return float(match[1]) * units[match[2]]


def format_s(seconds: float) -> str:
    """Seconds with three significant digits and a readable prefix: `12.3 ms`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{_three_digits(seconds / 1e-9)} ns"


def format_bytes(count: float) -> str:
    """Bytes with three significant digits and a decimal prefix: `602 kB`."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def format_bps(rate_bps: float) -> str:
    """Bits per second with a decimal prefix: `18.9 Mbit/s`."""
    for scale, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate_bps >= scale:
            return f"{rate_bps / scale:.4g} {unit}"
    return f"{rate_bps:.4g} bit/s"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
