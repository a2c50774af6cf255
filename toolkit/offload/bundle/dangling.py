"""Names that a part reads and nothing in it makes: what a wrong split forgot."""

from onnx import GraphProto, ModelProto

from offload.bundle.engine_input import EngineInput


def dangling(source: EngineInput) -> tuple[str, ...]:
    """Names read somewhere in a model and defined nowhere in it, sorted.

    Deliberately simple, and apart from how parts are made: it only has to explain a failure.
    """
    read: set[str] = set()
    made: set[str] = set()
    content = source if isinstance(source, bytes) else source.read_bytes()
    pending: list[GraphProto] = [ModelProto.FromString(content).graph]
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
