"""Results as files: JSON, CSV, Markdown, and one page with every figure."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offload.files import write_text
from offload.report.charts import Bar, Box, Panel, bars_svg, boxes_svg
from offload.report.gantt import gantt_svg
from offload.report.page import Section, page
from offload.report.svg import COLOURS, SHORT
from offload.scheduling.timeline import Timeline
from offload.units import format_bytes, format_s

from offload_cli.bench.results import (
    PLANNING,
    Cell,
    Goal,
    Group,
    Pick,
    facts,
    gain,
    goals,
    picks,
    planning,
    predicted_gain,
)

_PAPERS: Mapping[str, str] = {
    "3g": "Fig. 6(a)",
    "4g": "Fig. 6(b)",
    "wifi": "Fig. 7(a)",
}
_SHOWN = tuple(key for key in SHORT if key != "auto-raw")
_OVERHEADS_ON = "wifi"


def figures(groups: Sequence[Group], networks: Mapping[str, str]) -> dict[str, str]:
    """SVG documents by file name: one a network, the planning's time, two Gantts.

    Args:
        groups: what was measured.
        networks: name and description of each, in order.
    """
    whole = [group for group in groups if not group.model.endswith("_inside")]
    charts = {}
    for network, described in networks.items():
        mine = [group for group in whole if group.network == network]
        if mine:
            like = f", like the paper's {_PAPERS[network]}" if network in _PAPERS else ""
            title = f"Latency on {network} ({described}){like}"
            charts[f"latency-{network}.svg"] = bars_svg(
                title, [_panel(group) for group in mine], "* the planner's pick"
            )
    charts["overhead.svg"] = overhead_chart(whole)
    return {**charts, **gantts(groups)}


def _panel(group: Group) -> Panel:
    found = [(key, cell) for key in _SHOWN if (cell := group.cell(key))]
    bars = [
        Bar(SHORT[key], COLOURS[key], cell.median_s, cell.p95_s, "*" if cell.picked else "")
        for key, cell in found
    ]
    return Panel(group.model, bars)


def overhead_chart(groups: Sequence[Group]) -> str:
    """How long planning takes beside the inference it plans, on one network."""
    networks = [group.network for group in groups]
    network = _OVERHEADS_ON if _OVERHEADS_ON in networks else next(iter(networks), "")
    boxes = []
    for group in (group for group in groups if group.network == network):
        for key, seconds in group.overheads.items():
            name = f"planning, {SHORT[key]}"
            boxes.append(Box(group.model, name, COLOURS[key], seconds))
        fastest = min(group.cells, key=lambda cell: cell.median_s)
        boxes.append(Box(group.model, "the fastest inference", "#222222", fastest.latencies_s))
    return boxes_svg(f"Planning beside inference on {network}, like the paper's Fig. 7(b)", boxes)


def gantts(groups: Sequence[Group]) -> dict[str, str]:
    """Predicted over measured where the planner's pick gains most on LO, CO, PO, and least."""
    ranked = sorted(picks(groups), key=lambda pick: pick.ratio)
    if not ranked:
        return {}
    charts = {}
    for name, pick in (("best", ranked[0]), ("worst", ranked[-1])):
        title = (
            f"{name.capitalize()} cell: {pick.picked.model}, {pick.picked.network},"
            f" {1 / pick.ratio:.2f}x against {SHORT[pick.best.scheme]}"
        )
        shown = [pick.picked, *([pick.best] if pick.best.runs_as != pick.picked.runs_as else [])]
        lines = {kind: timeline for cell in shown for kind, timeline in _lines(cell).items()}
        charts[f"gantt-{name}.svg"] = gantt_svg(lines, title)
    return charts


def _lines(cell: Cell) -> dict[str, Timeline]:
    name = SHORT[cell.scheme]
    return {f"{name}, predicted": cell.predicted, f"{name}, measured": cell.measured}


def caption(name: str) -> str:
    """What a figure of that file name shows, as a heading."""
    kind, _, rest = name.removesuffix(".svg").partition("-")
    return {"latency": f"Latency on {rest}", "overhead": "What planning costs"}.get(
        kind, f"The {rest} cell"
    )


TITLE = "onnx-offload: the experiments"
GOALS = ("measure", "goal", "measured", "met")
GAINS = ("model", "network", "best of LO, CO, PO", "any order / PO", "paper's order / PO")
GAINS_OURS = ("OPSS / PO", "predicted", "joint / best of LO, CO, PO", "predicted")
CELLS = ("model", "network", "scheme", "median", "95 %", "predicted", "off by", "sent", "energy")
FACTS = ("measure", "measured")
PLANNED = ("model", *(SHORT[key] for key in PLANNING))
MISSED = ("model", "network", "input", "picked", "took", "best", "took", "ratio", "why")


def write_report(
    folder: Path, groups: Sequence[Group], networks: Mapping[str, str], about: str
) -> Path:
    """Write all files, and give the page's path.

    Args:
        folder: gets `results.json`, `results.csv`, `results.md`, `index.html` and the charts.
        groups: what was measured.
        networks: name and description of each, in order.
        about: a sentence on how it was measured.
    """
    charts = figures(groups, networks)
    rows = goals(groups)
    for name, chart in charts.items():
        write_text(folder / name, chart)
    write_text(folder / "results.json", json.dumps(_json(groups, rows, about), indent=1))
    write_text(folder / "results.csv", _csv(groups))
    write_text(folder / "results.md", _markdown(groups, rows, about))
    target = folder / "index.html"
    write_text(target, page(TITLE, about, _sections(groups, rows, charts)))
    return target


def _json(groups: Sequence[Group], rows: Sequence[Goal], about: str) -> dict[str, Any]:
    return {
        "about": about,
        "goals": [dict(zip(GOALS, row.row, strict=True)) for row in rows],
        "groups": [
            {
                "settings": dict(group.settings),
                "cells": [cell.to_json() for cell in group.cells],
                "overheads_s": {key: list(found) for key, found in group.overheads.items()},
            }
            for group in groups
        ],
    }


def _csv(groups: Sequence[Group]) -> str:
    keys = ("model", "network", "scheme", "runs_as", "picked")
    names = (*keys, "median_s", "p95_s", "predicted_s", "upload_bytes", "energy_j", "difference")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow((*names, "runs"))
    for cell in _cells(groups):
        writer.writerow((*(getattr(cell, name) for name in names), len(cell.latencies_s)))
    return lines.getvalue()


def _markdown(groups: Sequence[Group], rows: Sequence[Goal], about: str) -> str:
    parts = [f"# {TITLE}", about, "## Goals", _table(GOALS, (row.row for row in rows))]
    parts += ["## What overlap, order and cut bring", _table(GAINS + GAINS_OURS, _gains(groups))]
    if missed := _missed(groups):
        parts += ["## Where the pick was not within 2 % of the best", _table(MISSED, missed)]
    parts += ["## What all cells tell", _table(FACTS, facts(groups))]
    parts += ["## What planning costs", _table(PLANNED, planning(groups))]
    parts += ["## All cells", _table(CELLS, map(_row, _cells(groups)))]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sections(
    groups: Sequence[Group], rows: Sequence[Goal], charts: Mapping[str, str]
) -> list[Section]:
    met = sum(row.met for row in rows)
    found = [
        Section("Goals", f"{met} of {len(rows)} met.", GOALS, [row.row for row in rows]),
        *(Section(caption(name), charts=[chart]) for name, chart in charts.items()),
        Section(
            "What overlap, order and cut bring",
            "Measured factors, above 1 is faster; all but joint share PO's cut. Predicted: the"
            " factor to its left as planned.",
            GAINS + GAINS_OURS,
            _gains(groups),
        ),
    ]
    if missed := _missed(groups):
        verdict = "Every cell where the planner's pick took over 2 % longer than the best."
        found.append(Section("Where the pick was not the best", verdict, MISSED, missed))
    found += [
        Section("What all cells tell", "", FACTS, facts(groups)),
        Section("What planning costs", "Least to most, all networks.", PLANNED, planning(groups)),
    ]
    equal = "Schemes that come to the same program were run once and share its figures."
    return [*found, Section("All cells", equal, CELLS, [_row(cell) for cell in _cells(groups)])]


def _cells(groups: Sequence[Group]) -> Iterable[Cell]:
    for group in groups:
        yield from (cell for key in SHORT if (cell := group.cell(key)))


def _row(cell: Cell) -> tuple[str, ...]:
    name = SHORT[cell.scheme]
    same = "" if cell.runs_as == cell.scheme else f" (as {SHORT[cell.runs_as]})"
    off = cell.median_s / cell.predicted_s - 1 if cell.predicted_s else 0.0
    return (
        cell.model,
        cell.network,
        name + same + (" *" if cell.picked else ""),
        format_s(cell.median_s),
        format_s(cell.p95_s),
        format_s(cell.predicted_s),
        f"{100 * off:+.0f} %",
        format_bytes(cell.upload_bytes),
        f"{cell.energy_j:.2f} J",
    )


def _gains(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    rows = []
    for group in groups:
        rivals = [cell for key in ("local", "cloud", "partition") if (cell := group.cell(key))]
        best = min(rivals, key=lambda cell: cell.median_s)
        factors = [gain(group, key) for key in ("fifo", "paper", "opss")]
        factors += [predicted_gain(group, "opss"), gain(group, "joint", best.scheme)]
        factors.append(predicted_gain(group, "joint", best.scheme))
        shown = [f"{value:.2f}" if value else "" for value in factors]
        rows.append((group.model, group.network, SHORT[best.scheme], *shown))
    return rows


def _missed(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    return [_missed_row(pick) for pick in picks(groups) if not pick.is_good]


def _missed_row(pick: Pick) -> tuple[str, ...]:
    return (
        pick.picked.model,
        pick.picked.network,
        pick.kind,
        SHORT[pick.picked.scheme],
        format_s(pick.picked.median_s),
        SHORT[pick.best.scheme],
        format_s(pick.best.median_s),
        f"{pick.ratio:.2f}",
        pick.why,
    )
