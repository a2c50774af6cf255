"""Draw where a model is cut: its layers as blocks, the device's and the server's in two colours."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from offload.bundle.bundle import Bundle
from offload.bundle.layers import TimedGraph, read_layers
from offload.costs.link import Link
from offload.graph.model import Tensor
from offload.planning.plan import Plan, Send, Side
from offload.planning.plan_set import PlanSet
from offload.report.blocks import MOST, fold
from offload.report.layout import Drawing, Point, layered
from offload.report.page import Section, page
from offload.report.svg import NAMES, document, label, legend, text
from offload.units import format_bps, format_bytes, format_s

_BLOCK, _TENSOR, _PORT = (176.0, 40.0), (186.0, 54.0), (176.0, 34.0)
_LETTERS = 25
_MARGIN = 24.0
_STEPS = 60
_BEYOND = 4.0  # the slider goes this factor beyond the bandwidths where the plan changes
_DEVICE, _SERVER, _UPLOAD, _DOWNLOAD = "#0072b2", "#00785a", "#e69f00", "#cc79a7"
_LOOK = (
    ".cut text{font:12px system-ui,sans-serif}.cut .small{font-size:10.5px}"
    ".cut .edge{fill:none;stroke:#8b95a5;stroke-width:1.4}"
    ".cut .sent{fill:none;stroke:#e69f00;stroke-width:2.4}"
    ".cut .down.sent{stroke:#cc79a7}"
    ".cut .device rect{fill:#0072b2}.cut .server rect{fill:#00785a}"
    ".cut .block text{fill:#fff;text-anchor:middle}.cut .block .order{text-anchor:start}"
    ".cut .port rect{fill:#fff;stroke:#0072b2;stroke-width:1.5}"
    ".cut .port text{fill:#222;text-anchor:middle}"
    ".cut .tensor rect{fill:#fff4de;stroke:#e69f00;stroke-width:1.5}"
    ".cut .tensor.down rect{fill:#fbeaf3;stroke:#cc79a7}"
    ".cut .tensor text{fill:#222;text-anchor:middle}"
    ".cut .tensor .through{stroke:#8b95a5;stroke-width:1.4;visibility:hidden}"
    ".cut .tensor.off rect,.cut .tensor.off text{visibility:hidden}"
    ".cut .tensor.off .through{visibility:visible}"
    "@media (prefers-color-scheme:dark){"
    ".cut .port rect{fill:#12161d}.cut .port text{fill:#dde3ec}.cut .tensor rect{fill:#3a2b0c}"
    ".cut .tensor.down rect{fill:#38202e}.cut .tensor text{fill:#f3e6cf}"
    ".cut .edge:not(.sent),.cut .tensor .through{stroke:#76819a}}"
)

OVERVIEW = 48
"""`most` for a picture among other charts."""

Direction: TypeAlias = Literal["up", "down"]


@dataclass(frozen=True)
class _Block:
    """Layers that are drawn as one block, by index."""

    layers: tuple[int, ...]


@dataclass(frozen=True)
class _Port:
    """An input or output of the model."""

    tensor: str
    is_input: bool


@dataclass(frozen=True)
class _Sent:
    """A tensor that at least one plan sends."""

    tensor: str
    direction: Direction


_Box: TypeAlias = _Block | _Port | _Sent


@dataclass(frozen=True)
class _Transfer:
    """A tensor that a plan sends, in words.

    Attributes:
        box: where it is drawn.
        place: number in the order of sending in its direction.
        name: of the tensor.
        shape: its type and shape.
        size: bytes on the wire.
        encoding: how it is written.
    """

    box: _Sent
    place: int
    name: str
    shape: str
    size: str
    encoding: str


class CutPicture:
    """The layers of a model in rows, and what each of some plans runs where and sends.

    Args:
        model: the layers and their seconds.
        plans: of that model.
        most: as in `fold`.
    """

    def __init__(self, model: TimedGraph, plans: Sequence[Plan], most: int = MOST) -> None:
        self.model, self.plans = model, plans
        self._graph = model.graph
        names = {layer.name: index for index, layer in enumerate(model.graph.layers)}
        # By plan and side: the layers in the order in which they run.
        self._orders = [{side: _order(plan, side, names) for side in Side} for plan in plans]
        on_device = [set(order[Side.DEVICE]) for order in self._orders]
        keys = [tuple(index in side for side in on_device) for index in range(len(names))]
        uploads = {_Sent(send.tensor, "up"): None for plan in plans for send in plan.uploads}
        downloads = {_Sent(send.tensor, "down"): None for plan in plans for send in plan.downloads}
        self.sent = [*uploads, *downloads]
        apart = {sent.tensor for sent in uploads}
        self.blocks = [_Block(block) for block in fold(model.graph, keys, apart, most)]

    def side(self, plan: int, block: _Block) -> Side:
        """Where a plan runs a block."""
        return Side.DEVICE if block.layers[0] in self._orders[plan][Side.DEVICE] else Side.SERVER

    @cached_property
    def places(self) -> list[dict[_Block, int]]:
        """By plan: the place of each block in the order in which its side runs its blocks."""
        places: list[dict[_Block, int]] = []
        for plan, orders in enumerate(self._orders):
            places.append({})
            for side, order in orders.items():
                same = [block for block in self.blocks if self.side(plan, block) is side]
                same.sort(key=lambda block: order[block.layers[0]])
                places[plan] |= {block: place for place, block in enumerate(same, 1)}
        return places

    def seconds(self, block: _Block, side: Side) -> float | None:
        """Seconds of a block on a side; None: not measured."""
        seconds = self.model.seconds.get(side)
        return None if seconds is None else sum(seconds[layer] for layer in block.layers)

    def transfers(self, plan: int) -> list[_Transfer]:
        """What a plan sends, uploads first, in order."""
        sends: list[tuple[Direction, int, Send]] = []
        sends += [("up", place, s) for place, s in enumerate(self.plans[plan].uploads, 1)]
        sends += [("down", place, s) for place, s in enumerate(self.plans[plan].downloads, 1)]
        return [
            _Transfer(
                _Sent(send.tensor, direction),
                place,
                send.tensor,
                _shape(self._graph.tensors[send.tensor]),
                "size not known" if send.size_bytes is None else format_bytes(send.size_bytes),
                send.encoding,
            )
            for direction, place, send in sends
        ]

    @cached_property
    def boxes(self) -> list[_Box]:
        """Everything that is drawn as a box."""
        graph = self._graph
        inputs = [_Port(name, True) for name in graph.inputs]
        return [*inputs, *self.blocks, *self.sent, *(_Port(n, False) for n in graph.outputs)]

    @cached_property
    def edges(self) -> list[tuple[_Box, _Box]]:
        """From box to box, through the tensors that are sent; each once."""
        graph = self._graph
        block_of = {layer: block for block in self.blocks for layer in block.layers}
        edges: dict[tuple[_Box, _Box], None] = {}
        for name in dict.fromkeys((*graph.inputs, *graph.producer)):
            up, down = _Sent(name, "up"), _Sent(name, "down")
            source: _Box = (
                block_of[graph.producer[name]] if name in graph.producer else _Port(name, True)
            )
            far = {
                layer
                for plan, order in zip(self.plans, self._orders, strict=True)
                if any(send.tensor == name for send in plan.uploads)
                for layer in order[Side.SERVER]
            }
            for layer in graph.consumers.get(name, ()):
                if layer in far:
                    edges[source, up] = edges[up, block_of[layer]] = None
                elif block_of[layer] != source:
                    edges[source, block_of[layer]] = None
            if name in graph.outputs:
                port = _Port(name, False)
                if down in self.sent:
                    edges[source, down] = edges[down, port] = None
                else:
                    edges[source, port] = None
        return list(edges)

    @cached_property
    def layout(self) -> Drawing:
        """Where the boxes are."""
        sizes = {_Block: _BLOCK, _Port: _PORT, _Sent: _TENSOR}
        linked = {box for edge in self.edges for box in edge}
        return layered({b: sizes[type(b)] for b in self.boxes if b in linked}, self.edges)

    def sentence(self, plan: int) -> str:
        """How many layers run where, and what is sent."""
        chosen, total = self.plans[plan], len(self._graph.layers)
        count = len(self._orders[plan][Side.DEVICE])
        sizes = [send.size_bytes or 0 for send in chosen.uploads]
        if chosen.is_local:
            return f"All {total} layers run on the device; nothing is sent."
        things = "1 tensor" if len(sizes) == 1 else f"{len(sizes)} tensors"
        things += f" ({format_bytes(sum(sizes))})"
        if not count:
            return f"The device computes no layer and sends {things}."
        return f"{count} of {total} layers run on the device, which sends {things}."


def _order(plan: Plan, side: Side, names: Mapping[str, int]) -> dict[int, int]:
    """The layers of a side, each with its place in the order in which they run."""
    layers = [names[name] for segment in plan.on(side) for name in segment.layers]
    return {layer: place for place, layer in enumerate(dict.fromkeys(layers))}


def _shape(tensor: Tensor) -> str:
    sizes = "x".join("?" if size is None else str(size) for size in tensor.shape or ())
    return f"{tensor.dtype or 'not a tensor'} {sizes}".strip()


def _short(name: str, letters: int = _LETTERS) -> str:
    return name if len(name) <= letters else "…" + name[1 - letters :]


def cut_svg(model: TimedGraph, plan: Plan, title: str = "") -> str:
    """One plan as a self-contained SVG document: blocks, tensors that are sent, and a legend.

    Args:
        model: the layers and their seconds.
        plan: what runs where and what is sent.
        title: of the picture; empty: the model's name and what the plan does.
    """
    picture = CutPicture(model, (plan,))
    wide = max(picture.layout.width + 2 * _MARGIN, 480)
    entries, y = legend(_legend(picture), round(wide), 38)
    drawn = _drawing(picture, 0, (wide - picture.layout.width) / 2, y + 10)
    tall = round(y + 10 + picture.layout.height + _MARGIN)
    title = title or f"{model.graph.name}: {picture.sentence(0)}"
    return document(round(wide), tall, title, [*entries, *drawn], _LOOK)


def _legend(picture: CutPicture) -> list[tuple[str, str]]:
    """The legend: each colour and its meaning."""
    entries = [(_DEVICE, "device"), (_SERVER, "server")]
    used = {sent.direction for sent in picture.sent}
    entries += [(_UPLOAD, "upload")] if "up" in used else []
    return entries + ([(_DOWNLOAD, "download")] if "down" in used else [])


def _drawing(picture: CutPicture, plan: int, left: float, top: float) -> list[str]:
    """The boxes and edges of one plan."""
    active = {transfer.box for transfer in picture.transfers(plan)}
    return [
        f'<g class="cut" transform="translate({left:.1f} {top:.1f})">',
        *(_edge(picture, edge, active) for edge in picture.edges),
        *(_box(picture, box, plan) for box in picture.boxes if box in picture.layout.centres),
        "</g>",
    ]


def _edge(picture: CutPicture, edge: tuple[_Box, _Box], active: set[_Sent]) -> str:
    sent = next((box for box in edge if isinstance(box, _Sent)), None)
    classes = ["edge"]
    data = ""
    if sent is not None:
        number = picture.sent.index(sent)
        classes += [sent.direction, *(["sent"] if sent in active else [])]
        data = f' data-sent="{number}"'
    path = _path(picture.layout.routes[edge], _height(edge[0]), _height(edge[1]))
    return f'<path class="{" ".join(classes)}"{data} d="{path}"/>'


def _height(box: _Box) -> float:
    return {_Block: _BLOCK, _Port: _PORT, _Sent: _TENSOR}[type(box)][1]


def _path(points: Sequence[Point], first: float, last: float) -> str:
    """A line that leaves the upper box below, enters the lower box above, and bends in between."""
    (x, y), (end_x, end_y) = points[0], points[-1]
    stops = [(x, y + first / 2)]
    for bend_x, bend_y in points[1:-1]:
        stops += [(bend_x, bend_y - _BLOCK[1] / 2), (bend_x, bend_y + _BLOCK[1] / 2)]
    stops.append((end_x, end_y - last / 2))
    parts = [f"M{stops[0][0]:.0f} {stops[0][1]:.0f}"]
    for (x0, y0), (x1, y1) in pairwise(stops):
        middle = (y0 + y1) / 2
        curve = f"C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
        parts.append(f"V{y1:.0f}" if x0 == x1 else curve)
    return "".join(parts)


def _frame(centre: Point, size: tuple[float, float], radius: int) -> str:
    (x, y), (width, height) = centre, size
    place = f'x="{x - width / 2:.1f}" y="{y - height / 2:.1f}"'
    return f'<rect {place} width="{width:g}" height="{height:g}" rx="{radius}"/>'


def _box(picture: CutPicture, box: _Box, plan: int) -> str:
    x, y = centre = picture.layout.centres[box]
    if isinstance(box, _Port):
        tensor = picture.model.graph.tensors[box.tensor]
        parts = [
            _frame(centre, _PORT, 17),
            label(x, y - 3, _short(box.tensor)),
            label(x, y + 11, _short(_shape(tensor)), "small"),
        ]
        kind = "input" if box.is_input else "output"
        return f'<g class="port"><title>{kind} {text(box.tensor)}</title>{"".join(parts)}</g>'
    if isinstance(box, _Sent):
        number = picture.sent.index(box)
        shown = next((t for t in picture.transfers(plan) if t.box == box), None)
        lines = _lines(shown, picture.plans[plan].link, picture.plans[plan]) if shown else ()
        rows = [
            label(x, y - 12 + 16 * row, line, "small" if row else "")
            for row, line in enumerate(lines or ("", "", ""))
        ]
        off = "" if shown else " off"
        through = f'<path class="through" d="M{x:.1f} {y - _TENSOR[1] / 2:.1f}v{_TENSOR[1]:g}"/>'
        return (
            f'<g class="tensor {box.direction}{off}" data-tensor="{number}">{through}'
            f"{_frame(centre, _TENSOR, 10)}{''.join(rows)}</g>"
        )
    side = picture.side(plan, box)
    name, figures = _words(picture, box, side)
    number = picture.blocks.index(box)
    return (
        f'<g class="block {side}" data-block="{number}" tabindex="0">'
        f"<title>{text(_hover(picture, box))}</title>{_frame(centre, _BLOCK, 5)}"
        f"{label(x, y - 3, name)}{label(x, y + 13, figures, 'small')}"
        f"{label(x - 84, y + 13, str(picture.places[plan][box]), 'small order')}</g>"
    )


def _words(picture: CutPicture, block: _Block, side: Side) -> tuple[str, str]:
    """The two lines of a block: its name; what it is and how long it takes on a side."""
    layers = [picture.model.graph.layers[index] for index in block.layers]
    kind = _short(layers[0].op, 16) if len(layers) == 1 else f"{len(layers)} layers"
    seconds = picture.seconds(block, side)
    return _short(layers[-1].name), kind if seconds is None else f"{kind} · {format_s(seconds)}"


def _hover(picture: CutPicture, block: _Block) -> str:
    """The layers of a block with their times, one a line; the first ones of many."""
    lines = [
        " · ".join(filter(None, (name, op, *(f"{s} {t}" for s, t in times))))
        for name, op, *rest in _layers(picture, block)[:12]
        for times in [[(s, t) for s, t in zip(Side, rest, strict=True) if t]]
    ]
    more = len(block.layers) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)


def _layers(picture: CutPicture, block: _Block) -> list[list[str]]:
    """Name, operators, and seconds on device and server of each layer; empty: not measured."""
    seconds = picture.model.seconds
    return [
        [
            picture.model.graph.layers[index].name,
            picture.model.graph.layers[index].op,
            *(format_s(seconds[side][index]) if side in seconds else "" for side in Side),
        ]
        for index in block.layers
    ]


def _lines(transfer: _Transfer, link: Link | None, plan: Plan) -> tuple[str, str, str]:
    """The three lines of a tensor that is sent."""
    arrow = "↑" if transfer.box.direction == "up" else "↓"
    took = _seconds(plan, link)[transfer.box]
    figures = f"{transfer.size} {transfer.encoding} · {took}"
    name = _short(transfer.name, _LETTERS - 1)
    return f"{arrow}{transfer.place} {name}", _short(transfer.shape), figures


def _seconds(plan: Plan, link: Link | None) -> dict[_Sent, str]:
    """The time on the link of each tensor that a plan sends, in words."""
    work = plan.forecast.work if link is None else plan.forecast.on(link)
    jobs = {job.name.partition(":")[2]: job for job in work.jobs}
    words: dict[_Sent, str] = {}
    for send in plan.uploads:
        seconds = jobs[send.wire].upload_s if send.wire in jobs else 0.0
        words[_Sent(send.tensor, "up")] = format_s(seconds)
    for send in plan.downloads:
        words[_Sent(send.tensor, "down")] = (
            "time not known"
            if link is None or send.size_bytes is None
            else format_s(link.download_s(send.size_bytes))
        )
    return words


def cut_page(bundle: Bundle) -> str:
    """A page with the plans of a bundle; its content is that of `cut_figure`.

    Raises:
        InputError: the bundle has no layers in it: it is a deployed one, or of an older version.
    """
    model = read_layers(bundle.path)
    reasons = [plan.reason[:1].upper() + plan.reason[1:] for plan in bundle.plans]
    why = Section("Why", reasons[0])
    if len(reasons) > 1:
        numbered = [(str(number), reason) for number, reason in enumerate(reasons)]
        why = Section("Why", "", ("plan", "why"), numbered)
    sections = [Section("", charts=[cut_figure(model, bundle.plan_set)]), why]
    return page(f"Where {model.graph.name} is cut", "", sections)


def cut_figure(model: TimedGraph, plans: PlanSet, most: int = MOST) -> str:
    """The plans of a bundle as HTML: picture, table of what is sent, and a slider over bandwidths.

    The picture, its style and its script are all in the text: nothing is loaded. Without
    scripts, the plan for the bandwidth in the middle is shown.

    Args:
        model: the layers and their seconds.
        plans: one, or several with the bandwidths at which each is used.
        most: as in `fold`: the smaller, the more layers are in one block.
    """
    picture = CutPicture(model, plans.plans, most)
    steps = _slider(plans)
    start = len(steps) // 2
    shown = steps[start][1]
    data = {
        "steps": [_step(picture, link, plan) for link, plan in steps],
        "plans": [_plan(picture, number) for number in range(len(plans.plans))],
        "blocks": [
            {"name": _words(picture, b, Side.DEVICE)[0], "layers": _layers(picture, b)}
            for b in picture.blocks
        ],
    }
    slider = ""
    if len(steps) > 1:
        slider = (
            f'<label class="bandwidth">Uplink <input type="range" min="0" max="{len(steps) - 1}"'
            f' value="{start}"> <output></output></label>'
        )
    hidden = "" if picture.transfers(shown) else " hidden"
    island = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    script = files("offload.report").joinpath("cut.js").read_text(encoding="utf-8")
    wide, tall = (round(x + 2 * _MARGIN) for x in (picture.layout.width, picture.layout.height))
    drawing = "\n".join(_drawing(picture, shown, _MARGIN, _MARGIN))
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}"'
        f' height="{tall}" role="img" aria-label="{text(model.graph.name)}">'
        f"<style>{_LOOK}</style>{drawing}</svg>"
    )
    names = "".join(
        f'<span><i style="background:{colour}"></i>{name}</span>'
        for colour, name in _legend(picture)
    )
    return (
        f'<figure class="cut-figure">{slider}<p class="cut-legend">{names}</p>'
        f'<p class="cut-sentence" aria-live="polite">'
        f"{html.escape(_sentence(picture, *steps[start]))}</p>"
        f'<div class="picture">{drawn}</div>'
        f'<div class="wide"><table class="cut-table"{hidden}><thead><tr><th>sent</th>'
        "<th>tensor</th><th>shape</th><th>bytes</th><th>encoding</th><th>on the link</th></tr>"
        "</thead>"
        f"<tbody>{_rows(picture, *steps[start])}</tbody></table></div>"
        f'<script type="application/json">{island}</script><script>{script}</script></figure>'
    )


def _slider(plans: PlanSet) -> list[tuple[Link | None, int]]:
    """The links of the slider, each with the plan for it; one entry for a single plan."""
    own = [plan.link for plan in plans.plans if plan.link is not None]
    if len(plans.plans) == 1 or len(own) < len(plans.plans):
        return [(plans.plans[0].link, 0)]
    rates = [link.up_bps for link in own]
    rates += [r.low_bps for r in plans.ranges[1:]]
    low, high = min(rates) / _BEYOND, max(rates) * _BEYOND
    steps: list[tuple[Link | None, int]] = []
    for step in range(_STEPS + 1):
        rate_bps = low * (high / low) ** (step / _STEPS)
        number = plans.at(rate_bps)
        link = own[number]
        down_bps = rate_bps * link.down_bps / link.up_bps
        steps.append((replace(link, up_bps=rate_bps, down_bps=down_bps), number))
    return steps


def _plan(picture: CutPicture, number: int) -> dict[str, Any]:
    """What the script shows while a plan is chosen."""
    blocks = []
    for block in picture.blocks:
        side = picture.side(number, block)
        figures = _words(picture, block, side)[1]
        blocks.append([side.value, figures, str(picture.places[number][block])])
    return {"blocks": blocks}


def _step(picture: CutPicture, link: Link | None, number: int) -> dict[str, Any]:
    """What the script shows for a bandwidth."""
    plan = picture.plans[number]
    return {
        "plan": number,
        "link": "" if link is None else format_bps(link.up_bps),
        "sentence": _sentence(picture, link, number),
        "sent": {
            picture.sent.index(transfer.box): _lines(transfer, link, plan)
            for transfer in picture.transfers(number)
        },
        "rows": [_cells(transfer, link, plan) for transfer in picture.transfers(number)],
    }


def _sentence(picture: CutPicture, link: Link | None, number: int) -> str:
    plan = picture.plans[number]
    words = picture.sentence(number)
    if plan.alternatives or plan.latency_s > 0:
        latency_s = plan.latency_s if link is None else plan.forecast.latency_s(link)
        words += f" Predicted latency: {format_s(latency_s)}"
        words += f" at {format_bps(link.up_bps)} up." if link and not plan.is_local else "."
    if len(picture.plans) > 1:
        words += f" Plan {number} ({NAMES[plan.scheme]})."
    return words


def _cells(transfer: _Transfer, link: Link | None, plan: Plan) -> list[str]:
    place = f"{transfer.box.direction} {transfer.place}"
    took = _seconds(plan, link)[transfer.box]
    return [place, transfer.name, transfer.shape, transfer.size, transfer.encoding, took]


def _rows(picture: CutPicture, link: Link | None, number: int) -> str:
    plan = picture.plans[number]
    rows: Iterable[Sequence[str]] = (_cells(t, link, plan) for t in picture.transfers(number))
    return "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
