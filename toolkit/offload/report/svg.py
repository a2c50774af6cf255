"""The frame of every chart: size, title, style, legend."""

from collections.abc import Iterable, Sequence
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
