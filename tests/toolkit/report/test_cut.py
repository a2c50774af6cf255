"""The picture of a cut shows what the plans say."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from offload.bundle.bundle import Bundle
from offload.bundle.layers import TimedGraph, read_layers
from offload.costs.link import Link
from offload.planning.plan import Plan, Side
from offload.planning.plan_set import PlanSet
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.report.cut import cut_figure, cut_page, cut_svg
from offload.units import format_bytes, format_s

from tests.toolkit.bundle.several import swept
from tests.toolkit.graphs import graph_of
from tests.toolkit.report.test_charts import problem_at

DIAMOND = graph_of([(0, 1), (0, 2), (1, 3), (2, 3)], 4)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return swept(tmp_path_factory.mktemp("cut"))


def groups(svg: str, kind: str) -> list[list[str]]:
    """The texts of each group of a class."""
    root = ET.fromstring(svg)
    return [
        [line.text or "" for line in group.iter(f"{SVG}text")]
        for group in root.iter(f"{SVG}g")
        if kind in (group.get("class") or "").split()
    ]


def test_blocks_have_the_colour_of_their_side_and_tensors_their_figures(bundle: Bundle) -> None:
    model, plan = read_layers(bundle.path), bundle.plans[1]
    svg = cut_svg(model, plan)
    assert [len(groups(svg, side)) for side in Side] == [1, 1]
    assert [groups(svg, side)[0][1] for side in Side] == ["MatMul", "11 layers"]
    send, back = plan.uploads[0], plan.downloads[0]
    assert plan.link is not None
    (up, down) = groups(svg, "tensor")
    assert up[0] == f"↑1 {send.tensor}"
    assert up[1] == "float 4x4"
    assert up[2] == f"{format_bytes(send.size_bytes or 0)} raw · " + format_s(
        plan.link.upload_s(send.size_bytes or 0)
    )
    assert down[0] == f"↓1 {back.tensor}"
    assert [port[0] for port in groups(svg, "port")] == ["x", "y"]


def test_a_local_plan_sends_nothing(bundle: Bundle) -> None:
    svg = cut_svg(read_layers(bundle.path), bundle.plans[0])
    assert groups(svg, "server") == groups(svg, "tensor") == []
    assert "All 12 layers run on the device; nothing is sent." in svg


def test_branches_are_boxes_side_by_side_in_their_order() -> None:
    problem = problem_at(Link(1e6, 1e6), 1.0)
    plan = make_plan(problem, "local")
    svg = cut_svg(TimedGraph(DIAMOND, {Side.DEVICE: (0.2, 0.3, 0.3, 0.4)}), plan)
    assert groups(svg, "device") == [
        ["l0", "Op · 200 ms", "1"],
        ["l1", "Op · 300 ms", "2"],
        ["l2", "Op · 300 ms", "3"],
        ["l3", "Op · 400 ms", "4"],
    ]
    boxes = [
        rect
        for group in ET.fromstring(svg).iter(f"{SVG}g")
        if "block" in (group.get("class") or "")
        for rect in group.iter(f"{SVG}rect")
    ]
    assert boxes[1].get("y") == boxes[2].get("y")
    assert boxes[1].get("x") != boxes[2].get("x")


def data_of(figure: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json">(.*?)</script>', figure)
    assert found
    value: dict[str, list[dict[str, object]]] = json.loads(found[1])
    return value


def test_the_slider_goes_through_all_plans(bundle: Bundle) -> None:
    figure = cut_figure(read_layers(bundle.path), bundle.plan_set)
    data = data_of(figure)
    numbers = [step["plan"] for step in data["steps"]]
    assert numbers == sorted(numbers, key=lambda number: [0, 1, 2].index(int(str(number))))
    assert set(numbers) == {0, 1, 2}
    for step in data["steps"]:
        sends = bundle.plans[int(str(step["plan"]))]
        assert len(step["rows"]) == len(sends.uploads) + len(sends.downloads)  # type: ignore[arg-type]
    for plan, shown in zip(bundle.plans, data["plans"], strict=True):
        blocks: object = shown["blocks"]
        assert isinstance(blocks, list)
        sides = {block[0] for block in blocks}
        assert sides == {segment.side.value for segment in plan.segments}


def test_one_plan_has_no_slider_and_a_page_loads_nothing(bundle: Bundle) -> None:
    model = read_layers(bundle.path)
    assert "<input" not in cut_figure(model, PlanSet((bundle.plans[1],)))
    page = cut_page(bundle)
    assert "<input" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_names_are_escaped() -> None:
    layers = tuple(
        type(layer)(f"</script><b>{layer.name}", layer.op, layer.nodes, layer.inputs, layer.outputs)
        for layer in DIAMOND.layers
    )
    problem = problem_at(Link(1e6, 1e6), 1.0)
    graph = type(DIAMOND)(
        DIAMOND.name, DIAMOND.digest, DIAMOND.inputs, DIAMOND.outputs, layers, DIAMOND.tensors
    )
    plan: Plan = make_plan(PlanningProblem(graph, problem.costs), "local")
    figure = cut_figure(TimedGraph(graph), PlanSet((plan,)))
    assert "<b>" not in figure
    assert figure.count("</script>") == 2
