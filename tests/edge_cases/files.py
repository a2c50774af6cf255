"""What a file may hold besides a plain graph."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.edge_cases.edge_case import (
    CONDITION,
    EDGE_CASES,
    SIGNATURE,
    WEIGHT,
    EdgeCase,
    X,
    edge_case,
    either,
    floats,
    plain,
    rename,
)


@edge_case(f"{SIGNATURE} {{ a = Add(x, w) b = Exp(a) y = Sub(b, a) }}")
def sparse_initializer(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.array([5, -3], np.float32), "w")
    where = numpy_helper.from_array(np.array([1, 3], np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4]))


plain(
    "max unpool with indices",
    """g (float[N,1,4,4] x) => (float[N,1,4,4] y) { a = Tanh(x)
    p, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a) e = Exp(p)
    y = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (e, i) }""",
    {"x": floats(2, 1, 4, 4)},
)


@edge_case(
    f"""{SIGNATURE} {WEIGHT} {{ {CONDITION} a = Relu(x) b = Mul(a, w)
    y = If (c) {either("t_out = Add(a, b)", "e_out = Sub(a, b)")} }}"""
)
def odd_names(model: ModelProto) -> None:
    odd = {
        "x": "in put:0",
        "a": "/layer.1/Relu;1",
        "b": "größe/層",
        "w": "w\t1",
        "y": "../y",
        "c": " ",
    }
    rename(model.graph, odd)


EDGE_CASES[-1] = EdgeCase(EDGE_CASES[-1].name, EDGE_CASES[-1].model, {"in put:0": X["x"]})
plain(
    "dead nodes and dead weights",
    f"""{SIGNATURE} {WEIGHT} {{ dead = Exp(x) deader = Mul(dead, w) a = Relu(x) b = Tanh(a)
    k = Constant <value = float[1] {{1}}> () y = Exp(b) }}""",
)


@edge_case(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) y = Tanh(b) }}")
def metadata(model: ModelProto) -> None:
    helper.set_model_props(model, {"alphabet": "abc", "größe": "1"})
    model.producer_name, model.doc_string, model.domain = "maker", "what it is", "org.example"
    model.graph.doc_string = "a graph"
    model.model_version = 7


@edge_case(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) d = Tanh(b) y = Neg(d) }}")
def wrong_declared_shapes(model: ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [7, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, [1, 4]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]))


@edge_case(f"{SIGNATURE} {{ b = Exp(a) a = Relu(x) y = Sub(d, a) d = Tanh(b) }}")
def nodes_out_of_order(model: ModelProto) -> None:
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"


plain(
    "many tensors cross",
    f"""{SIGNATURE} {{ a = Relu(x) b = Exp(x) d = Tanh(x) e = Neg(x) f = Abs(x) h = Sigmoid(x)
    i = Add(a, b) j = Mul(d, e) k = Sub(f, h) l = Add(i, j) m = Add(k, a) n = Mul(l, d)
    y = Sub(m, n) }}""",
)
plain(
    "two answers from two sides",
    """g (float[N,4] x) => (float[N,4] p, float[N,4] q) { a = Relu(x) p = Exp(a) b = Tanh(x)
    q = Neg(b) }""",
)
plain(
    "random numbers of a fixed seed",
    f"""{SIGNATURE} {{ a = Relu(x) r = RandomNormalLike <seed=3.0> (a) z = Mul(r, a)
    b = Sub(z, z) y = Add(a, b) }}""",
)
plain(
    "dropout with a mask",
    """g (float[N,4] x) => (float[N,4] y, bool[N,4] mask) { a = Relu(x) d, mask = Dropout(a)
    y = Exp(d) }""",
)


@edge_case(f"{SIGNATURE} {{ a = Relu(x) k = Constant () b = Mul(a, k) y = Add(b, k) }}")
def sparse_constant(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.array([5, -3], np.float32), "")
    where = numpy_helper.from_array(np.array([1, 3], np.int64), "")
    sparse = helper.make_sparse_tensor(values, where, [4])
    model.graph.node[1].attribute.append(helper.make_attribute("sparse_value", sparse))


@edge_case(f"{SIGNATURE} {{ a = Relu(x) b = Exp(a) y = Tanh(b) }}")
def sizes_written_as_minus_one(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
