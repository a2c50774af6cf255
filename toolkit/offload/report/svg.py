"""Frame, axis, legend and colours shared by all SVG charts."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_STYLE = (
    "text{font:12px sans-serif;fill:#222}.paper{fill:#fff}"
    ".title{font-size:16px;font-weight:bold}"
    ".name{font-weight:bold}.end{text-anchor:end}.mid{text-anchor:middle}"
    ".small{font-size:10px}.tiny{font-size:9px}.note{font-size:11px;fill:#666}"
    ".in{fill:#fff;text-anchor:middle}.bar{stroke:#fff;stroke-width:1}"
    ".grid{stroke:#e3e3e3}.axis{stroke:#222;fill:none}.whisker{stroke:#222;fill:none}"
    "@media (prefers-color-scheme:dark){text{fill:#dde3ec}.paper{fill:#12161d}"
    ".note{fill:#98a2b3}.in{fill:#fff}.bar{stroke:#12161d}.grid{stroke:#2c3440}"
    ".axis,.whisker{stroke:#dde3ec}}"
)
_ENTRY = 20
_LETTER = 7.2
_TITLE_LETTER, _TITLE_LINE = 9.4, 20


def document(width: int, height: int, title: str, parts: Iterable[str], style: str = "") -> str:
    """A self-contained SVG document with its title at the top; `style` adds to the style sheet.

    A long title takes several lines, and all parts move down.
    """
    lines = textwrap.wrap(title, int((width - 32) / _TITLE_LETTER)) or [""]
    extra = (len(lines) - 1) * _TITLE_LINE
    moved = [f'<g transform="translate(0 {extra})">', *parts, "</g>"] if extra else parts
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + extra}" '
            f'width="{width}" height="{height + extra}" role="img" aria-label="{text(title)}">',
            f"<style>{_STYLE}{style}</style>",
            f'<rect width="{width}" height="{height + extra}" class="paper"/>',
            *(label(16, 26 + _TITLE_LINE * row, line, "title") for row, line in enumerate(lines)),
            *moved,
            "</svg>\n",
        ]
    )


def legend(entries: Sequence[tuple[str, str]], width: int, top: int) -> tuple[list[str], int]:
    """Legend of (colour, name) entries, wrapped to the width, and the y where it ends."""
    parts, x, y = [], 16.0, top
    for colour, name in entries:
        wide = _ENTRY + _LETTER * len(name) + 14
        if x + wide > width and x > 16:
            x, y = 16.0, y + 18
        parts.append(rect(x, y, 12, 12, colour))
        parts.append(label(x + 17, y + 10, name))
        x += wide
    return parts, y + 18


def label(x: float, y: float, words: str, kind: str = "", turned: bool = False) -> str:
    """Text at a point; `kind` is a class of the style sheet, `turned` text runs upwards."""
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' transform="rotate(-90 {x:.6g} {y:.6g})"' if turned else ""
    return f'<text x="{x:.6g}" y="{y:.6g}"{attributes}>{text(words)}</text>'


def rect(
    x: float, y: float, width: float, height: float, colour: str, hover: str = "", kind: str = ""
) -> str:
    """A filled rectangle; `hover` is shown under the pointer, `kind` as in `label`."""
    attributes = f' class="{kind}"' if kind else ""
    title = f"<title>{text(hover)}</title>" if hover else ""
    return (
        f'<rect x="{x:.6g}" y="{y:.6g}" width="{width:.6g}" height="{height:.6g}"'
        f' fill="{colour}"{attributes}>{title}</rect>'
    )


def text(value: str) -> str:
    """Escape text for XML content and attributes; control characters become spaces."""
    printable = "".join(c if c.isprintable() else " " for c in value)
    return escape(printable, {'"': "&quot;"})


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear or logarithmic axis from a value to a larger one, mapped to pixels.

    Attributes:
        low: value at `start`; > 0 on a logarithmic axis.
        high: value at `end`.
        start: pixel of `low`.
        end: pixel of `high`, which may be the smaller pixel.
        log: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def from_zero(cls, high: float, start: float, end: float) -> "Axis":
        """A linear axis from 0 to a value; to 1 if the value is 0."""
        return cls(0.0, high if high > 0 else 1.0, start, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 10) -> tuple[float, ...]:
        """Round values on the axis.

        On a linear axis, at most `most` intervals of 1, 2 or 5 times a power of ten; on a
        logarithmic one, three to a decade, more if it spans less than a decade.
        """
        slack = 1 + 1e-9
        if not self.log:
            power = 10.0 ** math.floor(math.log10(self.high / most))
            steps = (power * factor for factor in (1, 2, 5, 10, 20))
            step = next(s for s in steps if self.high / s <= most)
            return tuple(k * step for k in range(math.floor(self.high / step * slack) + 1))
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if self.high / self.low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        values = (factor * 10.0**power for power in decades for factor in factors)
        return tuple(v for v in values if self.low / slack <= v <= self.high * slack)


def time_unit(end_s: float) -> tuple[str, float]:
    """The unit for labels of a time axis that ends at `end_s`: its name and its seconds."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    return next((unit for unit in units if end_s >= unit[1]), units[-1])


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
"""By scheme; distinguishable for colour-blind readers (Okabe and Ito 2008, and two more)."""

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
"""The paper's names of the schemes, for tables and legends."""
