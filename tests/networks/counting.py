"""Arithmetic of one real run, counted from the sizes that onnxruntime reports for each kernel call.

This is the figure that `offload`'s own estimate is compared with, so nothing of `offload` is used.
The run is without optimisations: each node of the file is called as it stands, those in If, Loop
and Scan bodies as often as they really run. A multiply and an add count two. What only moves data
counts nothing; anything else one for each element of its first input or output, the larger one.
Tree ensembles compare and hardly compute: no such count is made of them.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import GraphProto, NodeProto, helper

Sizes = tuple[int, ...]
Attributes = Mapping[str, Any]

CONVOLUTIONS = frozenset(("Conv", "ConvInteger", "FusedConv", "NhwcFusedConv", "QLinearConv"))
LINEAR = ("LinearClassifier", "LinearRegressor")
PRODUCTS = frozenset(
    (
        *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"),
    )
)

MOVING = frozenset(
    (
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout"),
        *("Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MemcpyToHost"),
        *(
            "Pad",
            "Reshape",
            "ScatterElements",
            "ScatterND",
            "Shape",
            "Size",
            "Slice",
            "SpaceToDepth",
        ),
        *("Split", "SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze", "ZipMap"),
        *("If", "Loop", "Scan", "SequenceAt", "SequenceConstruct", "SequenceInsert"),
        *("ConcatFromSequence", "OneHot", "Range", "EyeLike", "Trilu", "ArrayFeatureExtractor"),
    )
)


def attributes(node: NodeProto) -> dict[str, Any]:
    return {found.name: helper.get_attribute_value(found) for found in node.attribute}


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, also those in bodies."""
    for node in graph.node:
        yield node
        for found in node.attribute:
            for body in (*found.graphs, *([found.g] if found.HasField("g") else [])):
                yield from nodes_of(body)


def _weights(inputs: Sequence[Sizes], place: int) -> float:
    """Products for each output element of a convolution, whose weights are this input."""
    return 2.0 * math.prod(inputs[place][1:])


def _inner(inputs: Sequence[Sizes], how: Attributes) -> float:
    """Products for each output element of a matrix product."""
    return 2.0 * inputs[0][-2 if how.get("transA") else -1]


def _recurrent(inputs: Sequence[Sizes]) -> float:
    """Two matrix products for each step and row."""
    steps, batch = inputs[0][:2]
    return 2.0 * steps * batch * (math.prod(inputs[1]) + math.prod(inputs[2]))


def _joined_attention(inputs: Sequence[Sizes]) -> float:
    """onnxruntime's Attention: the projection to query, key and value, and two products."""
    batch, length, width = inputs[0]
    inner = inputs[1][-1] // 3
    return 2.0 * batch * length * width * 3 * inner + 4.0 * batch * length * length * inner


def operations(
    op: str, inputs: Sequence[Sizes], outputs: Sequence[Sizes], how: Attributes
) -> float:
    """Operations of one call.

    Args:
        op: the operator.
        inputs: sizes of the inputs that are there.
        outputs: sizes of the outputs.
        how: the node's attributes.
    """
    if op in MOVING or not outputs:
        return 0.0
    out = math.prod(outputs[0])
    if op in CONVOLUTIONS:
        return out * _weights(inputs, 3 if op == "QLinearConv" else 1)
    if op == "ConvTranspose":
        return math.prod(inputs[0]) * _weights(inputs, 1)
    if op in PRODUCTS:
        return out * _inner(inputs, how)
    other = {
        **dict.fromkeys(LINEAR, lambda: 2.0 * inputs[0][0] * len(how["coefficients"])),
        "Einsum": lambda: 2.0 * math.prod(einsum_sizes(how["equation"].decode(), inputs).values()),
        **dict.fromkeys(("LSTM", "GRU", "RNN"), lambda: _recurrent(inputs)),
        "QAttention": lambda: _joined_attention(inputs),
        "MultiHeadAttention": lambda: 4.0 * out * inputs[1][-2],
        "GroupQueryAttention": lambda: 4.0 * out * outputs[1][-2],
    }
    if op == "Attention":
        return _joined_attention(inputs) if "num_heads" in how else 4.0 * out * inputs[1][-2]
    if op in other:
        return other[op]()
    return float(max(math.prod(inputs[0]) if inputs else 0, out))


def einsum_sizes(equation: str, inputs: Sequence[Sizes]) -> dict[str, int]:
    """The size of each letter; what an ellipsis stands for comes as numbered letters."""
    found: dict[str, int] = {}
    for term, sizes in zip(
        equation.replace(" ", "").split("->")[0].split(","), inputs, strict=True
    ):
        before, dots, after = term.partition("...")
        more = [f"...{place}" for place in range(len(sizes) - len(before) - len(after))]
        found.update(zip([*before, *(more if dots else []), *after], sizes, strict=True))
    return found


def count(model: Path, feeds: Mapping[str, Any]) -> float:
    """Operations of one run of a model on these inputs."""
    named = _named_apart(model)
    how = {
        node.name: attributes(node)
        for node in nodes_of(onnx.load(named, load_external_data=False).graph)
    }
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_profiling = True
    # Weights that a kernel has packed anew are no longer among its inputs.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory() as place:
        options.profile_file_prefix = f"{place}/run"
        session = ort.InferenceSession(str(named), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    named.unlink()
    total = 0.0
    for event in events:
        name, suffix = event["name"].removesuffix("_kernel_time"), "_kernel_time"
        if event["cat"] == "Node" and event["name"].endswith(suffix):
            about = event["args"]
            inputs, outputs = _sizes(about["input_type_shape"]), _sizes(about["output_type_shape"])
            total += operations(about["op_name"], inputs, outputs, how.get(name, {}))
    return total


def _named_apart(model: Path) -> Path:
    """A copy beside the model in which each node has a name of its own, functions inlined."""
    proto = onnx.load(model, load_external_data=False)
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    for place, node in enumerate(nodes_of(proto.graph)):
        node.name = f"node{place}"
    path = model.with_name("named.onnx")
    path.write_bytes(proto.SerializeToString())
    return path


def _sizes(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[Sizes]:
    return [tuple(sizes) for value in listed for sizes in value.values()]
