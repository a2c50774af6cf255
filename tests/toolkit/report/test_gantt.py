"""Gantt charts and Chrome traces of timelines."""

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.planning.plan import Segment, Send, Side
from offload.planning.planner import make_plan
from offload.report.gantt import COLOURS, chrome_trace, gantt_svg, gantt_text, named
from offload.report.svg import Axis
from offload.scheduling.timeline import Lane, Span, Timeline

from tests.toolkit.report.test_charts import problem_at

SVG = "{http://www.w3.org/2000/svg}"
PAIR = {
    "predicted": Timeline.of(
        [
            Span(Lane.DEVICE, "conv", 0.0, 0.06),
            Span(Lane.UPLINK, "conv", 0.06, 0.08),
            Span(Lane.DEVICE, "pool", 0.06, 0.1),
        ]
    ),
    "measured": Timeline.of([Span(Lane.SERVER, "rest", 0.1, 0.2)]),
}


def test_text_draws_every_lane_in_proportion() -> None:
    lines = gantt_text(PAIR, width=49).splitlines()
    assert lines == [
        "predicted: 100 ms",
        "device   ████conv████▓▓pool▓▓",
        "uplink               ████",
        "server",
        "measured: 200 ms",
        "device",
        "uplink",
        "server                       ████████rest████████",
        "         0                   100 ms",
    ]


@given(st.integers(20, 200))
def test_text_stays_within_its_width(width: int) -> None:
    assert all(len(line) <= width for line in gantt_text(PAIR, width).splitlines())


def test_svg_has_a_bar_for_every_span_in_the_colour_of_its_lane() -> None:
    root = ET.fromstring(gantt_svg(PAIR, "A title"))
    bars = root.findall(f"{SVG}rect[@class='bar']")
    assert [bar.get("fill") for bar in bars] == [
        COLOURS[lane] for lane in (Lane.DEVICE, Lane.DEVICE, Lane.UPLINK, Lane.SERVER)
    ]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths == pytest.approx([692 * s for s in (0.3, 0.2, 0.1, 0.5)], abs=0.01)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"A title", "predicted: 100 ms", "measured: 200 ms", "time (ms)"} <= set(words)


@given(st.text(), st.text())
def test_svg_is_well_formed_whatever_the_names(layer: str, title: str) -> None:
    timeline = Timeline.of([Span(Lane.DEVICE, layer, 0.0, 1.0)])
    ET.fromstring(gantt_svg({title: timeline}, title))


def test_an_empty_timeline_can_be_drawn() -> None:
    assert gantt_text({"empty": Timeline(())}, 40).startswith("empty: 0 s\ndevice\nuplink\n")
    ET.fromstring(gantt_svg({"empty": Timeline(())}, "nothing"))


@given(st.floats(1e-9, 1e9), st.integers(1, 20))
def test_ticks_are_round_and_within_the_axis(end_s: float, most: int) -> None:
    ticks = Axis.from_zero(end_s, 0, 100).ticks(most)
    assert len(ticks) <= most + 1
    assert ticks[0] == 0
    assert ticks[-1] <= end_s * (1 + 1e-6)


def test_what_changed_stands_in_the_heading() -> None:
    change = Span(Lane.DEVICE, "plan 0 -> plan 1", 0.0, 0.0)
    work = Span(Lane.DEVICE, "device-0", 0.0, 0.1)
    shown = {"measured": Timeline.of([change, work])}
    lines = gantt_text(shown, 40).splitlines()
    assert lines[0] == "measured: 100 ms; plan 0 -> plan 1"
    assert "device-0" in lines[1]
    assert gantt_svg(shown, "t").count('class="bar"') == 1


def test_trace_has_one_event_a_span() -> None:
    trace = chrome_trace(
        {
            "predicted": Timeline.of([Span(Lane.DEVICE, "a", 0.0, 0.5)]),
            "measured": Timeline.of([Span(Lane.UPLINK, "a", 0.5, 0.75)]),
        }
    )
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["cat"], e["ts"], e["dur"]) for e in spans] == [
        (1, 1, "device", 0.0, 500_000.0),
        (2, 2, "uplink", 500_000.0, 250_000.0),
    ]


def test_trace_names_its_processes_and_threads() -> None:
    trace = chrome_trace({"measured": Timeline(())})
    names = [e["args"]["name"] for e in trace["traceEvents"] if "name" in e["args"]]
    assert names == ["measured", "device", "uplink", "server", "downlink"]


def test_what_changed_is_an_instant() -> None:
    change = Span(Lane.DEVICE, "plan 0 -> plan 1", 0.0, 0.0)
    work = Span(Lane.DEVICE, "device-0", 0.0, 0.1)
    events = chrome_trace({"measured": Timeline.of([change, work])})["traceEvents"]
    assert [(e["ph"], e["name"]) for e in events if e["ph"] in "iX"] == [
        ("i", "plan 0 -> plan 1"),
        ("X", "device-0"),
    ]


def test_several_charts_share_an_axis() -> None:
    def width(svg: str) -> float:
        bar = ET.fromstring(svg).find(f"{SVG}rect[@class='bar']")
        assert bar is not None
        return float(bar.get("width", ""))

    alone = width(gantt_svg(PAIR, "t"))
    assert width(gantt_svg(PAIR, "t", end_s=0.4)) == pytest.approx(alone / 2)


def test_encoding_has_a_name_and_a_colour_of_its_own() -> None:
    plan = replace(
        make_plan(problem_at(Link(1e6, 1e6), 1.0), "partition"),
        uploads=(Send("t0", 9, "zstd"), Send("t1", 9, "uint8+zstd")),
        segments=(
            Segment("device-0", Side.DEVICE, ("l0",), (0,), ("x",), ("t0",)),
            Segment("device-1", Side.DEVICE, (), (), ("t1",), ("t1:uint8",)),
        ),
    )
    wire = plan.uploads[1].wire
    plan = replace(plan, segments=(plan.segments[0], replace(plan.segments[1], outputs=(wire,))))
    spans = (
        Span(Lane.DEVICE, "device-0", 0.0, 0.1),
        Span(Lane.DEVICE, "t0", 0.1, 0.2),
        Span(Lane.UPLINK, "t0", 0.2, 0.3),
        Span(Lane.DEVICE, "device-1", 0.3, 0.4),
    )
    timeline = named(Timeline.of(spans), plan)
    assert [span.name for span in timeline.spans] == [
        "device-0", "encode t0", "t0", "encode t1",
    ]  # fmt: skip
    svg = gantt_svg({"predicted": timeline}, "t")
    assert ">encode</text>" in svg
    assert svg.count('fill="#56b4e9" class="bar"') == 2
