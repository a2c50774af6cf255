"""Nodes that encode and decode compute what the registry declares, on every operator set."""

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.bundle.boundary_ops import BoundaryOps, expose, identity_model
from offload.costs.encodings import ENCODINGS, Encoding, TensorFormat
from offload.costs.quantization import Bounds
from offload.errors import InputError
from offload.planning.plan import Send
from offload_runtimes.engine import load
from offload_runtimes.measure.accuracy import LossyCrossing
from onnx import TensorProto, helper

Array = np.ndarray[Any, np.dtype[Any]]
LOSSY = [encoding for encoding in ENCODINGS.values() if encoding.form is not TensorFormat.PLAIN]
SHAPES = arrays.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=4)
ODD = st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 1e-8, 65504.0, -1.5])
VALUES = arrays.arrays(np.float32, SHAPES, elements=ODD | st.floats(-1e4, 1e4, width=32))


def send_of(encoding: Encoding, array: Array) -> Send | None:
    affine = Bounds.of(array).affine(encoding.form) if encoding.form.quantises else None
    if encoding.form.quantises and affine is None:
        return None
    return Send("t", None, encoding.name, affine=affine)


@settings(max_examples=40, deadline=None)
@given(array=VALUES, encoding=st.sampled_from(LOSSY), opset=st.sampled_from([9, 11, 13, 17, 21]))
def test_the_engine_computes_the_same_as_numpy(
    array: Array, encoding: Encoding, opset: int
) -> None:
    send = send_of(encoding, array)
    if send is None:
        return
    engine = load(identity_model(send, array.shape, opset).SerializeToString())
    (result,) = engine.run(["decoded"], {"t": array})
    expected = LossyCrossing(encoding, send.affine).passed(array)
    if encoding.form.quantises:
        assert send.affine is not None
        # Engines may divide or multiply by the inverse: a tie may fall to the next step.
        assert np.all(np.abs(result - expected) <= max(send.affine.scales) * 1.001)
    else:
        assert np.array_equal(result, expected)


@pytest.mark.parametrize("encoding", LOSSY, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_detected(encoding: Encoding, value: float) -> None:
    array = np.ones((1, 2, 3, 3), np.float32)
    send = send_of(encoding, array)
    assert send is not None
    engine = load(identity_model(send, array.shape).SerializeToString())
    array[0, 1, 2, 0] = value
    if send.guard is None:  # float16 has both
        (result,) = engine.run(["decoded"], {"t": array})
        assert np.array_equal(result, array, equal_nan=True)
    else:
        (total,) = engine.run([send.guard], {"t": array})
        assert not np.isfinite(total)


def relu() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 2, 1, 3)) for n in "xty"]
    node = helper.make_node("Relu", ["x"], ["t"], "relu")
    graph = helper.make_graph([node], "g", values[:1], values[1:2])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("encoding", LOSSY, ids=str)
def test_expose_undoes_insert(encoding: Encoding) -> None:
    array = np.arange(-3, 3, dtype=np.float32).reshape(1, 2, 1, 3)
    send = send_of(encoding, array)
    assert send is not None
    proto = relu()
    BoundaryOps((send,), (), frozenset()).insert(proto, proto.graph)
    encoded = load(proto.SerializeToString())
    crossing = {send.wire, send.guard} - {None}
    assert {value.name for value in encoded.outputs} == crossing
    expose(proto, (send,))
    bare = load(proto.SerializeToString())
    (result,) = bare.run(["t"], {"x": array})
    assert np.array_equal(result, np.maximum(array, 0))


def test_a_name_that_is_taken_is_refused() -> None:
    proto = relu()
    proto.graph.node.append(helper.make_node("Neg", ["t"], ["t@fp16"], "clash"))
    with pytest.raises(InputError, match="already"):
        BoundaryOps((Send("t", None, "fp16"),), (), frozenset()).insert(proto, proto.graph)
