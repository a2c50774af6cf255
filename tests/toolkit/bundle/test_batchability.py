"""Rows that may run together give the same results as alone; nodes that mix rows are detected."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from offload.bundle.batchability import why_alone
from offload.bundle.compare import difference
from offload.bundle.subgraph import Part
from offload.errors import InputError
from offload.graph.load import load_model
from offload_models.zoo import build
from offload_runtimes.engine import load
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

RNG = np.random.default_rng(11)
TOLERANCE = 1e-4
INPUTS: Mapping[str, tuple[Any, ...]] = {
    "m": ("N", 4),
    "x": ("N", 3, 4),
    "p": ("N", 2, 4, 4),
}
WEIGHTS: Mapping[str, np.ndarray] = {
    "w44": RNG.standard_normal((4, 4)).astype(np.float32),
    "w4": RNG.standard_normal(4).astype(np.float32),
    "w14": RNG.standard_normal((1, 4)).astype(np.float32),
    "w34": RNG.standard_normal((3, 4)).astype(np.float32),
    "w33": RNG.standard_normal((3, 3)).astype(np.float32),
    "w134": RNG.standard_normal((1, 3, 4)).astype(np.float32),
    "w344": RNG.standard_normal((3, 4, 4)).astype(np.float32),
    "w1144": RNG.standard_normal((1, 1, 4, 4)).astype(np.float32),
    "kernel": RNG.standard_normal((2, 2, 3, 3)).astype(np.float32),
    "two": np.ones(2, np.float32),
    "i0": np.array(0, np.int64),
    "i1": np.array(1, np.int64),
    "i_1": np.array(-1, np.int64),
    "v0": np.array([0], np.int64),
    "v1": np.array([1], np.int64),
    "v2": np.array([2], np.int64),
    "v_1": np.array([-1], np.int64),
    "v01": np.array([0, 1], np.int64),
    "v10": np.array([1, 0], np.int64),
    "s0_1": np.array([0, -1], np.int64),
    "s_14": np.array([-1, 4], np.int64),
    "s_134": np.array([-1, 3, 4], np.int64),
    "s_112": np.array([-1, 12], np.int64),
    "s12": np.array([12], np.int64),
    "w122": RNG.standard_normal((12, 2)).astype(np.float32),
    "s14": np.array([1, 4], np.int64),
    "s4_1": np.array([4, -1], np.int64),
    "pads": np.array([0, 0, 1, 0, 0, 1], np.int64),
    "pads0": np.array([1, 0, 0, 0, 0, 0], np.int64),
    "tile": np.array([1, 2], np.int64),
    "tile0": np.array([2, 1], np.int64),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "depth": np.array([4], np.int64),
    "onoff": np.array([0, 1], np.float32),
}


def node(op: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, reads.split(" "), makes.split(), name=f"{op}-{makes}", **attributes)


def model(nodes: Sequence[NodeProto], *outputs: str, opset: int = 17) -> ModelProto:
    """A model of these nodes, with the inputs and weights that they read."""
    read = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info(n, 1, s) for n, s in INPUTS.items() if n in read],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in WEIGHTS.items() if n in read],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    known = onnx.shape_inference.infer_shapes(proto).graph
    types = {value.name: value.type.tensor_type.elem_type for value in known.output}
    for value in proto.graph.output:
        value.type.tensor_type.elem_type = types[value.name] or TensorProto.FLOAT
    return proto


def verdict(proto: ModelProto) -> str:
    outputs = tuple(value.name for value in proto.graph.output)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(value.name for value in proto.graph.input if value.name not in stored)
    return why_alone(load_model(proto), Part(tuple(range(len(proto.graph.node))), inputs, outputs))


def mixing(proto: ModelProto, seed: int, counts: Sequence[int] = (1, 2, 1)) -> float:
    """Largest difference between one run of all rows and a run for each group of `counts` rows.

    Infinite if the model refuses all rows together; InputError if it refuses a group.
    """
    engine, rng = load(proto.SerializeToString()), np.random.default_rng(seed)
    groups = [
        {
            value.name: rng.standard_normal((count, *INPUTS[value.name][1:])).astype(np.float32)
            for value in engine.inputs
        }
        for count in counts
    ]
    alone = [engine.run(None, feeds) for feeds in groups]
    joined = {name: np.concatenate([feeds[name] for feeds in groups]) for name in groups[0]}
    try:
        together = engine.run(None, joined)
    except InputError:
        return np.inf
    shapes = [{array.shape[1:] for array in arrays} for arrays in zip(*alone, strict=True)]
    if any(len(sizes) > 1 for sizes in shapes) or any(a.ndim == 0 for one in alone for a in one):
        return np.inf
    separate = [np.concatenate(arrays) for arrays in zip(*alone, strict=True)]
    return max(difference(want, got) for want, got in zip(separate, together, strict=True))


APART: Mapping[str, list[NodeProto]] = {
    "Gemm": [node("Gemm", "m w44 w4", "y")],
    "Gemm with rows added": [node("Gemm", "m w44 m", "y", transB=1)],
    "MatMul": [node("MatMul", "m w44", "y")],
    "MatMul of rank 3": [node("MatMul", "x w44", "y")],
    "MatMul from the left": [node("MatMul", "w33 x", "y")],
    "attention": [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("MatMul", "x t", "s"),
        node("Softmax", "s", "a", axis=-1),
        node("MatMul", "a x", "y"),
    ],
    "broadcast": [node("Add", "x w134", "a"), node("Mul", "a w4", "y")],
    "Conv": [
        node("Conv", "p kernel two", "c", pads=[1] * 4),
        node("MaxPool", "c", "y", kernel_shape=[2, 2]),
    ],
    "LRN": [node("LRN", "p", "y", size=3)],
    "BatchNormalization": [node("BatchNormalization", "p two two two two", "y")],
    "GlobalAveragePool": [node("GlobalAveragePool", "p", "g"), node("Flatten", "g", "y", axis=1)],
    "Reshape 0 -1": [node("Reshape", "x s0_1", "y")],
    "Reshape -1 of as many": [node("Reshape", "x s_112", "y")],
    "Reshape by its own shape": [
        node("Shape", "x", "shape"),
        node("Gather", "shape i0", "n"),
        node("Unsqueeze", "n v0", "ns"),
        node("Concat", "ns v_1", "target", axis=0),
        node("Reshape", "x target", "y"),
    ],
    "classifier whose Reshape is not followed": [
        node("Shape", "x", "shape"),
        node("Slice", "shape v0 v1", "n"),
        node("Concat", "n s12", "target", axis=-1),
        node("Reshape", "x target", "f"),
        node("MatMul", "f w122", "l"),
        node("Add", "l two", "a"),
        node("Softmax", "a", "y", axis=1),
    ],
    "class token": [
        node("Shape", "x", "shape"),
        node("Slice", "shape v0 v1", "n"),
        node("Concat", "n v1 depth", "target", axis=0),
        node("Expand", "w4 target", "token"),
        node("Concat", "token x", "y", axis=1),
    ],
    "Softmax": [node("Softmax", "m", "y", axis=-1)],
    "LayerNormalization": [node("LayerNormalization", "x w4 w4", "y")],
    "ReduceMean": [node("ReduceMean", "x", "y", axes=[1, -1])],
    "ReduceSum": [node("ReduceSum", "x v1", "y", keepdims=0)],
    "Slice": [node("Slice", "x v0 v2 v1", "y")],
    "Pad": [node("Pad", "x pads", "y")],
    "Resize": [node("Resize", "p  scales", "y", mode="linear")],
    "Tile": [node("Tile", "m tile", "y")],
    "Squeeze": [node("ReduceMax", "x", "r", axes=[2]), node("Squeeze", "r v_1", "y")],
    "Unsqueeze": [node("Unsqueeze", "m v1", "y")],
    "Concat": [node("Concat", "x x", "y", axis=-1)],
    "Split": [node("Split", "m", "a y", axis=1)],
    "Gather": [node("Gather", "x v1", "y", axis=1)],
    "table": [node("ArgMax", "x", "i", axis=2, keepdims=0), node("Gather", "w44 i", "y")],
    "OneHot": [node("ArgMax", "x", "i", axis=2, keepdims=0), node("OneHot", "i depth onoff", "y")],
    "TopK": [node("TopK", "m v2", "y i")],
    "CumSum": [node("CumSum", "m i1", "y")],
    "Einsum": [node("Einsum", "x w44", "y", equation="bij,jk->bik")],
    "Einsum of rows": [node("Einsum", "x x", "y", equation="bij,bkj->bik")],
    "Where": [node("Greater", "m w4", "c"), node("Where", "c m w14", "y")],
}  # fmt: skip
MIXED: Mapping[str, list[NodeProto]] = {
    "Softmax axis 0": [node("Softmax", "m", "y", axis=0)],
    "ReduceMean axis 0": [node("ReduceMean", "m", "y", axes=[0])],
    "ReduceMean of all": [node("ReduceMean", "m", "r"), node("Sub", "m r", "y")],
    "ReduceSum axis 0 as an input": [node("ReduceSum", "m v0", "r"), node("Add", "m r", "y")],
    "mean over rows taken off": [node("ReduceMean", "m", "r", axes=[0]), node("Sub", "m r", "y")],
    "Reshape that folds and back": [
        node("Reshape", "x s4_1", "f"),
        node("Softmax", "f", "s", axis=-1),
        node("Reshape", "s s_134", "y"),
    ],
    "Flatten 0": [
        node("Flatten", "m", "f", axis=0),
        node("Softmax", "f", "s"),
        node("Reshape", "s s_14", "y"),
    ],
    "Transpose": [node("Transpose", "m", "y")],
    "Transpose and Softmax": [
        node("Transpose", "m", "t", perm=[1, 0]),
        node("Softmax", "t", "s", axis=-1),
        node("Transpose", "s", "y", perm=[1, 0]),
    ],
    "MatMul of activations": [
        node("Transpose", "m", "t"),
        node("MatMul", "m t", "s"),
        node("Softmax", "s", "a"),
        node("MatMul", "a m", "y"),
    ],
    "Gemm transA": [node("Gemm", "m m", "g", transA=1), node("MatMul", "m g", "y")],
    "Concat axis 0": [node("Concat", "m m", "y", axis=0)],
    "Gather axis 0": [node("Gather", "m v0", "r", axis=0), node("Add", "m r", "y")],
    "Slice axis 0": [node("Slice", "m v0 v1 v0", "r"), node("Add", "m r", "y")],
    "Slice without axes": [node("Slice", "m v0 v1", "r"), node("Add", "m r", "y")],
    "CumSum axis 0": [node("CumSum", "m i0", "y")],
    "Pad axis 0": [node("Pad", "x pads0", "y")],
    "Tile axis 0": [node("Tile", "m tile0", "y")],
    "ArgMax axis 0": [node("ArgMax", "m", "y", axis=0)],
    "TopK axis 0": [node("TopK", "m v1", "y i", axis=0)],
    "MaxPool's indices": [node("MaxPool", "p", "a y", kernel_shape=[2, 2])],
    "number of rows": [node("Shape", "m", "y")],
    "divided by the number of rows": [
        node("Shape", "m", "shape"),
        node("Gather", "shape i0", "n"),
        node("Cast", "n", "f", to=1),
        node("Div", "m f", "y"),
    ],
    "quantised as a whole": [
        node("DynamicQuantizeLinear", "m", "q s z"),
        node("DequantizeLinear", "q s z", "y"),
    ],
    "Einsum over rows": [
        node("Einsum", "m m", "e", equation="bi,bj->ij"),
        node("MatMul", "m e", "y"),
    ],
    "softmax of old": [node("Softmax", "m", "y", axis=0)],
}  # fmt: skip


@pytest.mark.parametrize("name", list(APART))
def test_rows_stay_apart(name: str) -> None:
    proto = model(APART[name], "y")
    assert not verdict(proto)
    assert mixing(proto, 1) <= TOLERANCE


@pytest.mark.parametrize("name", list(MIXED))
def test_mixing_rows_is_detected(name: str) -> None:
    """Each of these models gives other results when rows run together."""
    proto = model(MIXED[name], "y", opset=11 if name.endswith("old") else 17)
    assert verdict(proto)
    assert mixing(proto, 1) > TOLERANCE


NARROW: Mapping[str, list[NodeProto]] = {
    "Add": [node("Add", "x w344", "y")],
    "Add of higher rank": [node("Add", "m w134", "y")],
    "MatMul": [node("MatMul", "x w344", "y")],
    "MatMul of higher rank": [node("MatMul", "m w344", "y")],
    "Reshape that folds": [node("Reshape", "x s_14", "y")],
    "Reshape to one row": [node("Reshape", "m s14", "y")],
    "Squeeze": [node("Squeeze", "m", "y")],
    "Squeeze axis 0": [node("Squeeze", "m v0", "y")],
    "Unsqueeze axis 0": [node("Unsqueeze", "m v0", "y")],
    "Gather of other numbers": [node("Gather", "m v01", "y")],
    "unknown": [node("NonZero", "m", "y")],
    "random": [node("RandomNormalLike", "m", "r"), node("Add", "m r", "y")],
    "dropout that trains": [node("Cast", "i1", "train", to=9), node("Dropout", "m  train", "y")],
}  # fmt: skip


@pytest.mark.parametrize("name", list(NARROW))
def test_uncertain_nodes_are_refused(name: str) -> None:
    assert verdict(model(NARROW[name], "y"))


def test_the_reason_is_named() -> None:
    assert verdict(model(MIXED["CumSum axis 0"], "y")) == "CumSum 'CumSum-y' may mix rows"
    fixed = model(APART["Gemm"], "y")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert verdict(fixed) == "the first axis of input 'm' is fixed at 1"
    square = model(APART["Softmax"], "y")
    square.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    assert verdict(square) == "'N' is the size of a first and of a later axis"
    passed = model([node("Relu", "m", "y"), node("ReduceMax", "w44", "c")], "y", "c")
    assert verdict(passed) == "output 'c' does not have one row for each input row"
    assert "too old" in verdict(model(APART["Softmax"], "y", opset=6))


def test_a_default_is_not_a_constant() -> None:
    """A caller may override it, so its numbers prove nothing."""
    proto = model(APART["Reshape 0 -1"], "y")
    assert not verdict(proto)
    proto.graph.input.append(helper.make_tensor_value_info("s0_1", TensorProto.INT64, [2]))
    assert verdict(proto)


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet_v2", "googlenet"])
def test_a_network_of_the_zoo_with_a_free_batch(name: str) -> None:
    assert not verdict(build(name, batch="N"))
    assert "fixed at 1" in verdict(build(name))


KINDS: Sequence[tuple[str, int]] = (
    ("Relu", 1), ("Tanh", 1), ("Add", 2), ("Sub", 2), ("Max", 2), ("Softmax", 1), ("ReduceMean", 1),
    ("ReduceSum", 2), ("Transpose", 1), ("MatMul", 2), ("Gemm", 3), ("Concat", 2), ("Reshape", 2),
    ("Flatten", 1), ("Unsqueeze", 2), ("Squeeze", 2), ("Gather", 2), ("Slice", 4), ("CumSum", 2),
    ("Pad", 2), ("Tile", 2), ("Expand", 2), ("Shape", 1), ("Split", 1), ("Conv", 2), ("MaxPool", 1),
    ("LayerNormalization", 2), ("InstanceNormalization", 3), ("ArgMax", 1), ("TopK", 2),
    ("Einsum", 2), ("GatherElements", 2), ("DynamicQuantizeLinear", 1), ("Trilu", 1), ("Cast", 1),
)  # fmt: skip
WHOLE = [name for name, array in WEIGHTS.items() if array.dtype == np.int64]
NUMERIC = [name for name in WEIGHTS if name not in WHOLE]
SECOND_WHOLE = frozenset(
    ("ReduceSum", "Reshape", "Unsqueeze", "Squeeze", "Gather", "Slice", "CumSum", "Pad", "Tile",
     "Expand", "TopK")
)  # fmt: skip


def attributes(op: str, draw: st.DrawFn) -> dict[str, object]:
    axis = draw(st.integers(-3, 2))
    if op in ("Softmax", "Concat", "Gather", "ArgMax", "TopK", "Split", "GatherElements"):
        return {"axis": axis}
    if op == "ReduceMean":
        return {"axes": draw(st.sampled_from([[0], [1], [-1], [1, -1], [0, 1]]))}
    if op == "Transpose":
        orders: list[list[int]] = [[1, 0], [0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0], [0, 2, 3, 1]]
        return {"perm": draw(st.sampled_from(orders))}
    if op == "Flatten":
        return {"axis": draw(st.integers(0, 2))}
    if op == "Gemm":
        return {"transA": draw(st.integers(0, 1)), "transB": draw(st.integers(0, 1))}
    if op == "MaxPool":
        return {"kernel_shape": [2, 2]}
    if op == "Conv":
        return {"pads": [1] * 4}
    if op == "Einsum":
        rules = ["bi,ij->bj", "bi,bj->ij", "bij,bkj->bik", "bij,jk->bik", "ij,jk->ik", "bi,bi->b"]
        return {"equation": draw(st.sampled_from(rules))}
    return {"to": TensorProto.FLOAT} if op == "Cast" else {}


@st.composite
def chains(draw: st.DrawFn) -> ModelProto:
    """A chain of random nodes, without those that ONNX refuses."""
    values, nodes = [draw(st.sampled_from([*INPUTS]))], list[NodeProto]()
    if draw(st.booleans()):
        values.append(draw(st.sampled_from([*INPUTS])))
    for number in range(draw(st.integers(1, 6))):
        op, count = draw(st.sampled_from(KINDS))
        reads = [draw(st.sampled_from(values))]
        for place in range(1, count):
            stored = WHOLE if op in SECOND_WHOLE or place > 2 else NUMERIC
            is_computed = draw(st.integers(0, 3)) == 0
            reads.append(draw(st.sampled_from(values if is_computed else stored)))
        makes = f"v{number}" + {"Split": f" o{number}", "TopK": f" o{number}"}.get(op, "")
        makes += f" s{number} z{number}" if op == "DynamicQuantizeLinear" else ""
        one = node(op, " ".join(reads), makes, **attributes(op, draw))
        try:
            tried = model([*nodes, one], f"v{number}")
            onnx.shape_inference.infer_shapes(tried, strict_mode=True, data_prop=True)
        except (onnx.shape_inference.InferenceError, KeyError):  # not valid ONNX: another
            continue
        nodes.append(one)
        values.append(f"v{number}")
    assume(nodes)
    return model(nodes, nodes[-1].output[0])


@settings(max_examples=400, deadline=None)
@given(chains(), st.integers(0, 1000))
def test_rows_that_may_run_together_give_equal_results(proto: ModelProto, seed: int) -> None:
    if verdict(proto):
        return
    try:
        assert mixing(proto, seed) <= TOLERANCE
    except InputError:  # sizes that no frame could have
        assume(False)
