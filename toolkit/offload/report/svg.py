"""The frame, axes and colours that all charts share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}"
    ".name{font-weight:bold}.end{text-anchor:end}.mid{text-anchor:middle}.small{font-size:10px}.tiny{font-size:9px}"
    ".grid{stroke:#e3e3e3}.axis{stroke:#222;fill:none}.whisker{stroke:#222;fill:none}"
)
_ENTRY = 20
_LETTER = 7.2


def document(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A self-contained SVG document with its title at the top."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{text(title)}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="16" y="26" class="title">{text(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def legend(entries: Sequence[tuple[str, str]], width: int, top: int) -> tuple[list[str], int]:
    """Boxes and names (colour, name) in as many rows as needed, and where they end."""
    parts, x, y = [], 16.0, top
    for colour, name in entries:
        wide = _ENTRY + _LETTER * len(name) + 14
        if x + wide > width and x > 16:
            x, y = 16.0, y + 18
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="{y + 10}">{text(name)}</text>')
        x += wide
    return parts, y + 18


def text(value: str) -> str:
    """Text that may stand in XML, in an attribute too; control characters become spaces."""
    printable = "".join(c if c.isprintable() else " " for c in value)
    return escape(printable, {'"': "&quot;"})


_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


@dataclass(frozen=True, slots=True)
class Axis:
    """A time axis from 0.

    Attributes:
        end_s: where it ends, in seconds; > 0.
        ticks_s: round times from 0 to at most the end.
        unit: name of the unit of the labels.
        unit_s: that unit in seconds.
    """

    end_s: float
    ticks_s: tuple[float, ...]
    unit: str
    unit_s: float

    @classmethod
    def over(cls, end_s: float, most_ticks: int) -> "Axis":
        """The axis that ends at a time, with ticks 1, 2 or 5 times a power of ten apart."""
        end_s = end_s if end_s > 0 else 1.0
        unit_s, unit = next((u for u in _UNITS if end_s >= u[0]), _UNITS[-1])
        power = 10.0 ** math.floor(math.log10(end_s / max(most_ticks, 1)))
        steps = (power * factor for factor in (1, 2, 5, 10, 20))
        step = next(s for s in steps if end_s / s <= max(most_ticks, 1))
        ticks = tuple(k * step for k in range(math.floor(end_s / step * (1 + 1e-9)) + 1))
        return cls(end_s, ticks, unit, unit_s)

    def label(self, time_s: float) -> str:
        """A time in the axis's unit, without it."""
        return f"{time_s / self.unit_s:.6g}"


@dataclass(frozen=True, slots=True)
class LogAxis:
    """From a value to a greater one, both positive, onto a stretch of pixels.

    Attributes:
        low: the value at the start.
        high: the value at the end.
        start: the pixel of `low`.
        end: the pixel of `high`, which may be the smaller pixel.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values within the axis; more of them where it spans less than two decades."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        values = (step * 10.0**power for power in decades for step in steps)
        slack = 1 + 1e-9
        return tuple(v for v in values if self.low / slack <= v <= self.high * slack)


COLOURS: Mapping[str, str] = {
    "local": "#0072b2",
    "cloud": "#e69f00",
    "cloud-raw": "#a6761d",
    "neurosurgeon": "#56b4e9",
    "partition": "#009e73",
    "fifo": "#f0e442",
    "paper": "#8c8c8c",
    "opss": "#cc79a7",
    "joint": "#d55e00",
    "auto-raw": "#000000",
}
"""Told apart by colour-blind readers too (Okabe and Ito 2008, and two more)."""

NAMES: Mapping[str, str] = {
    "local": "local: all on the device",
    "cloud": "cloud: all on the server",
    "cloud-raw": "cloud: the camera's bytes sent",
    "neurosurgeon": "neurosurgeon: one tensor",
    "partition": "partition: no overlap",
    "fifo": "same cut, any order overlapped",
    "paper": "same cut, the paper's order",
    "opss": "opss: same cut, overlapped",
    "joint": "joint: cut for overlap",
    "auto-raw": "the planner's, for a camera's bytes",
}

SHORT: Mapping[str, str] = {
    "local": "LO",
    "cloud": "CO fp32",
    "cloud-raw": "CO raw",
    "neurosurgeon": "Neurosurgeon",
    "partition": "PO",
    "fifo": "PO + any order",
    "paper": "PO + paper's order",
    "opss": "OPSS",
    "joint": "joint",
    "auto-raw": "planner, raw",
}
"""As the paper names them, for tables and legends."""
