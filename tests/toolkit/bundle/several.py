"""A bundle with three plans from a sweep of links: local, split, all on the server."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from offload.bundle.bundle import Bundle
from offload.bundle.write import write_bundle
from offload.costs.link import Link, parse_links
from offload.costs.profile import LayerCost, Profile
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.read import read_graph
from offload.planning.plan_set import PlanSet, plans_over
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from onnx import TensorProto, helper, numpy_helper

Prove = Callable[[Model, Bundle], Iterable[str]]
WIDTHS = (256, 4, 64, 64, 64, 64, 64)
LINKS = parse_links("0.01..1000 Mbit/s", Link(1e6, 1e6, 0.001, 0.001), 13)


def funnel(path: Path, rows: int | str = 4) -> Path:
    """A chain of products, each followed by a tanh: x -> t0 -> ... -> y; t0 is the smallest."""
    random = np.random.default_rng(5)
    count = len(WIDTHS) - 1
    nodes, names = [], ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    for i in range(count):
        nodes.append(helper.make_node("MatMul", [names[i], f"w{i}"], [f"m{i}"], name=f"product{i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [names[i + 1]], name=f"tanh{i}"))
    weights = [
        numpy_helper.from_array(
            (random.normal(size=WIDTHS[i : i + 2]) / 8).astype(np.float32), f"w{i}"
        )
        for i in range(count)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width])
        for name, width in (("x", WIDTHS[0]), ("y", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "funnel", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def ranged_over(graph: Graph, device_s: float = 20e-3, server_s: float = 1e-3) -> PlanSet:
    """The plans of a sweep if all layers take the same time."""

    def profile(seconds: float) -> Profile:
        costs = tuple(LayerCost(layer.name, seconds, seconds, seconds) for layer in graph.layers)
        return Profile(graph.digest, "flat", "cpu", 1, costs, seconds * len(costs), 1)

    device, server = profile(device_s), profile(server_s)
    return plans_over(
        lambda link, _: make_plan(PlanningProblem.of(graph, device, server, link)), LINKS
    )


def swept(folder: Path, prove: Prove = lambda *_: (), device_s: float = 20e-3) -> Bundle:
    """The bundle of `funnel`, written next to its model; `prove` may add a proof."""
    model = load_model(funnel(folder / "net.onnx"))
    graph = read_graph(model)
    plan_set = ranged_over(graph, device_s)
    return write_bundle(model, graph, plan_set, folder / "b", {}, partial(prove, model))
