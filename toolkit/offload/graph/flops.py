"""Arithmetic of an operator, estimated from shapes."""

import math
from collections.abc import Mapping

from onnx import NodeProto

from offload.graph.model import Graph, Tensor

# Operators that move or describe numbers and compute none.
_FREE = frozenset(
    (
        *("Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


def node_flops(node: NodeProto, tensors: Mapping[str, Tensor]) -> float | None:
    """Floating-point operations of one node: a multiply-add counts two.

    Exact for Conv, ConvTranspose, Gemm and MatMul with known shapes; for operators with bodies
    None; for others one operation for each element of the largest tensor touched. None when a
    shape that matters isn't known.
    """
    inputs = [_sizes(tensors.get(name)) for name in node.input]
    outputs = [_sizes(tensors.get(name)) for name in node.output if name]
    if node.op_type in _FREE:
        return 0.0
    if node.op_type in ("If", "Loop", "Scan") or not outputs:
        return None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        kernel = inputs[3] if node.op_type == "QLinearConv" else inputs[1]
        return _product(2, outputs[0], kernel and kernel[1:])
    if node.op_type == "ConvTranspose":
        return _product(2, inputs[0], inputs[1] and inputs[1][1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = slice(0, 1) if transposed else slice(-1, None)
        return _product(2, outputs[0], inputs[0] and inputs[0][inner])
    if node.op_type in ("MatMul", "MatMulInteger"):
        return _product(2, outputs[0], inputs[0] and inputs[0][-1:])
    touched = [_product(1, sizes) for sizes in (*inputs, *outputs) if sizes is not None]
    counts = [count for count in touched if count is not None]
    return max(counts) if counts and outputs[0] is not None else None


def shares_by_work(graph: Graph, parts: Mapping[int, float]) -> dict[int, float]:
    """What each of several layers contributes to the time that they take together; sums to 1.

    By FLOPs, where they are known, else by the bytes a layer makes; by bytes alone where none
    of the layers computes anything.

    Args:
        graph: the layers.
        parts: by index of a layer, how much of it counts, in 0..1.
    """
    work: dict[int, float] = {}
    made_bytes: dict[int, float] = {}
    for index in parts:
        layer = graph.layers[index]
        made_bytes[index] = sum(graph.tensors[name].size_bytes or 0 for name in layer.outputs) or 1
        work[index] = made_bytes[index] if layer.flops is None else layer.flops
    if not any(work.values()):
        work = made_bytes
    weights = {index: part * work[index] for index, part in parts.items()}
    total = sum(weights.values())
    return {index: weight / total for index, weight in weights.items()}


def _sizes(tensor: Tensor | None) -> tuple[int, ...] | None:
    if tensor is None or tensor.shape is None:
        return None
    known = tuple(size for size in tensor.shape if size is not None)
    return known if len(known) == len(tensor.shape) else None


def _product(factor: float, *shapes: tuple[int, ...] | None) -> float | None:
    total = factor
    for sizes in shapes:
        if sizes is None:
            return None
        total *= math.prod(sizes)
    return float(total)
