"""One self-contained HTML page: headings, sentences, tables and inline charts."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2330; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #d6dbe4; text-align: right;
         font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 600; background: #eef6ee }
svg { max-width: 100%; height: auto }
p.verdict { font-size: 1.1rem; border-left: .25rem solid #3a7d44; padding-left: .8rem }
"""


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        heading: its title; none if empty.
        verdict: the main result in one sentence.
        columns: column headings of the table.
        rows: rows of the table as text.
        best: index of the row to highlight, or None.
        charts: SVG documents, shown one below the other.
    """

    heading: str
    verdict: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    best: int | None = None
    charts: Sequence[str] = ()


def page(title: str, introduction: str, sections: Iterable[Section]) -> str:
    """The page as one HTML document that loads nothing from the network."""
    body = "\n".join(_section(section) for section in sections)
    if introduction:
        body = f"<p>{html.escape(introduction)}</p>\n{body}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _section(section: Section) -> str:
    parts: list[str] = []
    if section.heading:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
    if section.verdict:
        parts.append(f'<p class="verdict">{html.escape(section.verdict)}</p>')
    if section.rows:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in section.columns)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>")
        for index, row in enumerate(section.rows):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            parts.append(f'<tr class="{"best" if index == section.best else ""}">{cells}</tr>')
        parts.append("</tbody></table>")
    return "\n".join([*parts, *section.charts])
