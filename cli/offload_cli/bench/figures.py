"""The paper's figures 6 and 7 in our figures, and where the time goes in two cells."""

from collections.abc import Mapping, Sequence

from offload.report.charts import Bar, Box, Panel, bars_svg, boxes_svg
from offload.report.gantt import gantt_svg
from offload.report.svg import COLOURS, SHORT
from offload.scheduling.timeline import Timeline

from offload_cli.bench.cell import Cell, Group
from offload_cli.bench.goals import picks

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
