"""Names that a part reads and nothing in it makes: what a wrong split forgot."""

from pathlib import Path

import onnx
from onnx import GraphProto


def dangling(path: Path) -> tuple[str, ...]:
    """Names read somewhere in a model file and defined nowhere in it, sorted.

    Deliberately simple, and apart from how parts are made: it only has to explain a failure.
    """
    read: set[str] = set()
    made: set[str] = set()
    pending: list[GraphProto] = [onnx.load(path, load_external_data=False).graph]
    while pending:
        graph = pending.pop()
        made.update(value.name for value in graph.input)
        made.update(tensor.name for tensor in graph.initializer)
        made.update(tensor.values.name for tensor in graph.sparse_initializer)
        read.update(value.name for value in graph.output)
        for node in graph.node:
            made.update(node.output)
            read.update(node.input)
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return tuple(sorted(read - made - {""}))
