"""Memory of the client process that runs a cut."""

from collections.abc import Sequence

from offload.graph.model import Graph
from offload.planning.cut import Cut

# A client process before it has loaded a model, where it was not measured: 79 to 96 MB were seen
# on x86-64.
CLIENT_BYTES = 100_000_000
# What the process takes in addition for each byte of a model, measured with onnxruntime 1.2x on
# 46 cuts of zoo models and rounded up, because the limit must hold. A file of weights is read,
# unpacked and packed anew for the kernels: 1.2 to 3.2. Tensors live in arenas that grow in leaps:
# up to 2.9. A tensor that is sent is copied by packing, by the message and by gRPC, on threads
# whose heaps keep what they had: up to 11.
WEIGHT_COPIES = 3.3
TENSOR_COPIES = 3.0
UPLOAD_COPIES = 12.0
SPARE_BYTES = 6_000_000  # more segments, other threads


def process_bytes(
    graph: Graph, cut: Cut, order: Sequence[int], client_bytes: int = CLIENT_BYTES
) -> int:
    """Memory of the device's process that runs a cut in this order, rounded up.

    Args:
        graph: the layers.
        cut: the device's layers and the tensors to send.
        order: the device's layers, in order.
        client_bytes: memory of the process before it has loaded a model.
    """
    weights = sum(graph.layers[layer].weight_bytes for layer in cut.device)
    uploads = sum(_size(graph, name) for name in cut.uploads)
    copied = WEIGHT_COPIES * weights + TENSOR_COPIES * peak_bytes(graph, cut, order)
    return client_bytes + SPARE_BYTES + round(copied + UPLOAD_COPIES * uploads)


def peak_bytes(graph: Graph, cut: Cut, order: Sequence[int]) -> int:
    """The most bytes of tensors alive at once on the device in this order.

    A tensor lives until its last reader on the device has run; inputs, uploads and graph outputs
    live to the end, so that the device can finish alone. Tensors of unknown size count 0.
    O(layers + edges).
    """
    lasting = {*cut.uploads, *graph.outputs}
    readers = {
        name: sum(user in cut.device for user in users) for name, users in graph.consumers.items()
    }
    alive = peak = sum(_size(graph, name) for name in graph.inputs)
    for index in order:
        layer = graph.layers[index]
        alive += sum(_size(graph, name) for name in layer.outputs)
        peak = max(peak, alive)
        for name in layer.inputs:
            readers[name] -= 1
            if not readers[name] and name not in lasting and name in graph.producer:
                alive -= _size(graph, name)
    return peak


def _size(graph: Graph, name: str) -> int:
    return graph.tensors[name].size_bytes or 0
