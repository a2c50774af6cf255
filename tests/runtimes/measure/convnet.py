"""A small network of convolutions whose cut is worth encoding, and plans of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import ENCODINGS, parse_allowed
from offload.costs.link import Link
from offload.costs.profile import LayerCost, Profile
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.read import read_graph
from offload.planning.cut import cut_after
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.encoding_sizes import measure_encodings
from onnx import TensorProto, helper, numpy_helper

PLAIN = EngineOptions(threads=1, optimize=False)
SHAPE = (1, 3, 16, 16)
Array = np.ndarray[Any, np.dtype[Any]]


def build(opset: int = 17) -> onnx.ModelProto:
    """x -> Conv -> Relu `t` -> Conv -> Relu `u` -> mean over the picture -> 8 scores `y`."""
    random = np.random.default_rng(1)
    weights = {
        "w0": random.normal(size=(8, 3, 3, 3)) / 4,
        "w1": random.normal(size=(8, 8, 3, 3)) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["t"], "relu0"),
        helper.make_node("Conv", ["t", "w1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["u"], "relu1"),
        helper.make_node("GlobalAveragePool", ["u"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["y"], "flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@dataclass(frozen=True)
class Net:
    """The network, its calibration and what its tensors take."""

    model: Model
    graph: Graph
    calibration: Calibration
    catalogue: EncodingTable

    def plan(self, catalogue: EncodingTable | None, cut: tuple[str, ...] = ("t",)) -> Plan:
        """On a link so slow that every byte counts, cut at some tensors."""
        names = [layer.name for layer in self.graph.layers]
        layers = tuple(LayerCost(name, 1e-3, 1e-3, 1e-3) for name in names)
        profile = Profile(self.graph.digest, "here", "cpu", 1, layers, 1e-3 * len(layers), 1)
        link = Link(1e3, 1e3)
        situation = PlanningProblem.of(self.graph, profile, profile, link, None, catalogue)
        return make_plan(situation, "opss", cut_after(self.graph, cut))

    def planned(self, encoding: str) -> Plan:
        """The plan with one encoding allowed besides raw."""
        return self.plan(self.catalogue.allowing((ENCODINGS[encoding],)))


def inputs(count: int) -> list[dict[str, Array]]:
    return [
        {"x": np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)}
        for seed in range(count)
    ]


def net(
    folder: Path,
    opset: int = 17,
    path: Path | None = None,
    calibration: Calibration | None = None,
) -> Net:
    """The network, or another from a file, measured."""
    if path is None:
        path = folder / "net.onnx"
        onnx.save(build(opset), path)
    model = load_model(path)
    graph = read_graph(model)
    calibration = calibration or Calibration(tuple(inputs(4)))
    catalogue = measure_encodings(model, graph, calibration, parse_allowed("any,picture"), PLAIN)
    return Net(model, graph, calibration, catalogue)
