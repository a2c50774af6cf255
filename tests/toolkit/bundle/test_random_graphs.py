"""Random graphs with bodies that capture values: a random cut computes what the model computes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.bundle.verify import parts_of_cut
from offload.graph.load import load_model
from offload.graph.read import read_graph
from onnx import ModelProto, NodeProto, TensorProto, helper

from tests.edge_cases import EdgeCase
from tests.toolkit.bundle.test_every_cut import check_cut, run

WEIGHTS = {name: np.arange(4, dtype=np.float32) + shift for shift, name in enumerate(("w", "v"))}
VALUE = helper.make_tensor_value_info


def body(name: str, depth: int, draw: st.DrawFn, around: list[str]) -> onnx.GraphProto:
    """A branch that captures values, also through a nested If if `depth` allows."""
    output = f"{name}_out"
    rows = [value for value in around if value not in WEIGHTS]
    picks = [draw(st.sampled_from(rows)), draw(st.sampled_from(around))]
    if depth and draw(st.booleans()):
        inner = branch(f"{name}_{depth}", depth - 1, draw, around, f"{name}_inner")
        nodes = [inner, helper.make_node("Add", [f"{name}_inner", picks[0]], [output])]
    else:
        nodes = [helper.make_node(draw(st.sampled_from(["Add", "Sub", "Mul"])), picks, [output])]
    return helper.make_graph(nodes, name, [], [VALUE(output, TensorProto.FLOAT, ["N", 4])])


def branch(name: str, depth: int, draw: st.DrawFn, around: list[str], out: str) -> NodeProto:
    return helper.make_node(
        "If",
        ["condition"],
        [out],
        then_branch=body(f"{name}t", depth, draw, around),
        else_branch=body(f"{name}e", depth, draw, around),
    )


def step(index: int, draw: st.DrawFn, values: list[str]) -> tuple[NodeProto, list[str]]:
    """A random node and the values it adds."""
    kind = draw(st.sampled_from(["unary", "binary", "several", "if", "weight", "constant"]))
    output, weights = f"v{index}", st.sampled_from([*WEIGHTS])
    first, second = draw(st.sampled_from(values)), draw(st.sampled_from(values))
    if kind == "if":
        return branch(f"b{index}", 2, draw, [*values, *WEIGHTS], output), [output]
    if kind == "several":
        return helper.make_node("TopK", [first, "four"], [output, f"{output}_i"]), [output]
    if kind == "constant":
        return helper.make_node("Tanh", [draw(weights)], [output]), []
    if kind == "unary":
        return helper.make_node(draw(st.sampled_from(["Tanh", "Neg"])), [first], [output]), [output]
    operand = second if kind == "binary" else draw(weights)
    op = draw(st.sampled_from(["Add", "Sub", "Max"]))
    return helper.make_node(op, [first, operand], [output]), [output]


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    values = ["x", "z"]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Less", ["sum", "zero"], ["condition"]),
    ]
    for index in range(draw(st.integers(1, 9))):
        node, produced = step(index, draw, values)
        nodes.append(node)
        values.extend(produced)
    outputs = draw(st.lists(st.sampled_from(values[2:] or ["x"]), min_size=1, unique=True))
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    stored.append(onnx.numpy_helper.from_array(np.array([4], np.int64), "four"))
    stored.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"))
    graph = helper.make_graph(
        nodes,
        "random",
        [VALUE(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "z")],
        [VALUE(name, TensorProto.FLOAT, None) for name in outputs],
        stored,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@settings(max_examples=200, deadline=None)
@given(models(), st.integers(0, 2**32 - 1))
def test_a_random_cut_is_right(proto: ModelProto, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("x", "z")}
    with TemporaryDirectory() as folder:
        source = Path(folder) / "whole.onnx"
        onnx.save(proto, source)
        expected = run(source, feeds)
        model = load_model(source)
        graph = read_graph(model)
        chosen = rng.integers(0, 2, len(graph.layers)).nonzero()[0].tolist()
        parts = parts_of_cut(graph, graph.ancestors(chosen))
        outputs = dict(check_cut(model, EdgeCase("random", proto, feeds), parts, {}, Path(folder)))
    for name, want in expected.items():
        assert np.array_equal(outputs[name], want), name
