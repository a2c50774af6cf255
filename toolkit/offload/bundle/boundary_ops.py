"""Casts and quantization at the boundary of a part: nodes that encode and decode tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from offload.costs.encodings import TensorFormat, encoding
from offload.costs.quantization import CHANNEL_AXIS
from offload.errors import InputError
from offload.planning.plan import Plan, Segment, Send, Side

_PREFIX = "offload/"
_CHANNELS_SINCE = 13
_VENDOR = "com.microsoft"


@dataclass(frozen=True, slots=True)
class BoundaryOps:
    """The operations that encode and decode tensors in a segment's part.

    Attributes:
        encodes: tensors that the part encodes at its end.
        decodes: tensors that the part decodes at its beginning.
        outputs: names of all outputs of the segment.
    """

    encodes: tuple[Send, ...]
    decodes: tuple[Send, ...]
    outputs: frozenset[str]

    def bare(
        self, inputs: Iterable[str], outputs: Iterable[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Inputs and outputs of the part without these operations: the model's own tensors."""
        decoded = {send.wire: send.tensor for send in self.decodes}
        added = {name for send in self.encodes for name in (send.wire, send.guard)}
        own = [name for name in outputs if name not in added]
        own += [send.tensor for send in self.encodes]
        return tuple(decoded.get(name, name) for name in inputs), tuple(dict.fromkeys(own))

    def insert(self, head: ModelProto, graph: GraphProto) -> None:
        """Insert the operations into a part, in place.

        `head` is the part without its graph, or the whole model.

        Raises:
            InputError: the model already has a tensor of a name that is needed.
        """
        for send in self.encodes:
            _encode(head, graph, send, send.tensor in self.outputs)
        for send in self.decodes:
            _decode(head, graph, send)


def boundary_ops(plan: Plan, segment: Segment) -> BoundaryOps:
    """The operations that a segment of a plan needs."""
    changed = [send for send in plan.uploads if send.wire != send.tensor]
    if segment.side is Side.DEVICE:
        encodes = [send for send in changed if send.wire in segment.outputs]
        return BoundaryOps(tuple(encodes), (), frozenset(segment.outputs))
    decodes = [send for send in changed if send.wire in segment.inputs]
    return BoundaryOps((), tuple(decodes), frozenset(segment.outputs))


def identity_model(send: Send, shape: Sequence[int], opset: int = _CHANNELS_SINCE) -> ModelProto:
    """A model that encodes one tensor and decodes it at once: `send.tensor` in, `decoded` out.

    The encoded tensor (and the finite check) are outputs too.
    """
    tensor = helper.make_tensor_value_info(send.tensor, TensorProto.FLOAT, shape)
    proto = helper.make_model(
        helper.make_graph([], "identity", [tensor], [tensor]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    _encode(proto, proto.graph, send, is_output=False)
    proto.graph.node.append(_decoder(proto, proto.graph, send, "decoded"))
    proto.graph.output.append(helper.make_tensor_value_info("decoded", TensorProto.FLOAT, shape))
    return proto


def expose(proto: ModelProto, sends: Iterable[Send]) -> None:
    """Undo `insert` in a loaded segment: restore the model's own tensors at its ends."""
    graph = proto.graph
    for send in sends:
        prefix = _prefix(send)
        for node in [node for node in graph.node if node.name.startswith(prefix)]:
            graph.node.remove(node)
        for stored in [stored for stored in graph.initializer if stored.name.startswith(prefix)]:
            graph.initializer.remove(stored)
        for info in [info for info in graph.value_info if info.name == send.tensor]:
            graph.value_info.remove(info)
        for values in (graph.input, graph.output):
            for value in [v for v in values if v.name in (send.wire, send.guard)]:
                if value.name == send.wire and send.tensor not in {v.name for v in values}:
                    values.append(_retyped(send.tensor, value, TensorProto.FLOAT))
                values.remove(value)


def _prefix(send: Send) -> str:
    """The start of the names of the nodes and stored tensors that encode or decode a tensor."""
    return f"{_PREFIX}{send.wire}/"


def _is_half(send: Send) -> bool:
    return encoding(send.encoding).form is TensorFormat.HALF


def _encode(head: ModelProto, graph: GraphProto, send: Send, is_output: bool) -> None:
    """Encode an output of the graph; `is_output`: the tensor itself stays an output too."""
    value = next(v for v in graph.output if v.name == send.tensor)
    _check_free(graph, send)
    graph.output.append(_encoded(value, send))
    if _is_half(send):
        name = f"{_prefix(send)}cast"
        cast = helper.make_node("Cast", [send.tensor], [send.wire], name, to=TensorProto.FLOAT16)
        graph.node.append(cast)
    else:
        graph.node.append(_linear(head, graph, "QuantizeLinear", send, send.tensor, send.wire))
        name, guard = f"{_prefix(send)}sum", send.guard or ""
        graph.node.append(helper.make_node("ReduceSum", [send.tensor], [guard], name, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(guard, TensorProto.FLOAT, []))
    if not is_output:
        graph.output.remove(value)
        if value.name not in {v.name for v in graph.input}:
            graph.value_info.append(value)


def _decode(head: ModelProto, graph: GraphProto, send: Send) -> None:
    """Take an input of the graph encoded, and decode it first."""
    _check_free(graph, send)
    inputs = [_encoded(v, send) if v.name == send.tensor else v for v in graph.input]
    graph.value_info.append(next(v for v in graph.input if v.name == send.tensor))
    nodes = [_decoder(head, graph, send, send.tensor), *graph.node]
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)


def _decoder(head: ModelProto, graph: GraphProto, send: Send, output: str) -> NodeProto:
    """The node that decodes a tensor."""
    if _is_half(send):
        name = f"{_prefix(send)}cast-back"
        return helper.make_node("Cast", [send.wire], [output], name, to=TensorProto.FLOAT)
    return _linear(head, graph, "DequantizeLinear", send, send.wire, output)


def _linear(
    head: ModelProto, graph: GraphProto, op: str, send: Send, source: str, target: str
) -> NodeProto:
    """A node QuantizeLinear or DequantizeLinear; stores its scales and zero points."""
    affine = send.affine
    if affine is None:
        raise InputError(f"tensor {send.tensor!r} is to be quantised, but the plan has no scale")
    name = f"{_prefix(send)}{op}"
    is_per_channel = len(affine.scales) > 1
    shape = (len(affine.scales),) if is_per_channel else ()
    scales = np.array(affine.scales, np.float32).reshape(shape)
    zeros = np.array(affine.zeros, np.uint8).reshape(shape)
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(zeros, f"{name}/zero"))
    node = helper.make_node(op, [source, f"{name}/scale", f"{name}/zero"], [target], name)
    if is_per_channel:
        node.attribute.append(helper.make_attribute("axis", CHANNEL_AXIS))
    opsets = [e.version for e in head.opset_import if e.domain in ("", "ai.onnx")]
    if max(opsets, default=1) < _CHANNELS_SINCE:
        node.domain = _VENDOR
        if all(entry.domain != _VENDOR for entry in head.opset_import):
            head.opset_import.append(helper.make_opsetid(_VENDOR, 1))
    return node


def _encoded(value: ValueInfoProto, send: Send) -> ValueInfoProto:
    """The description of a tensor, encoded."""
    return _retyped(send.wire, value, TensorProto.FLOAT16 if _is_half(send) else TensorProto.UINT8)


def _check_free(graph: GraphProto, send: Send) -> None:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    if send.wire in taken or send.guard in taken:
        raise InputError(
            f"the model has a tensor named {send.wire!r} already: rename it, or use lossless"
        )


def _retyped(name: str, value: ValueInfoProto, kind: int) -> ValueInfoProto:
    other = ValueInfoProto()
    other.CopyFrom(value)
    other.name = name
    other.type.tensor_type.elem_type = kind
    return other
