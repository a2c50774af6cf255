"""Bytes of the device's memory that a cut takes."""

from collections.abc import Sequence

from offload.graph.model import Graph
from offload.partition.cut import Cut

# Measured on zoo models with onnxruntime 1.2x on x86-64: a client that has loaded nothing takes
# 79 to 96 MB, and each byte of weights and tensors 1.1 to 3.5, as kernels repack their weights. The
# limit must hold, so these are on the safe side.
RUNTIME_BYTES = 112_000_000
COPIES = 3.0


def device_bytes(graph: Graph, cut: Cut, order: Sequence[int]) -> int:
    """Weights of the device's layers and the most tensors alive at once in this order.

    A tensor lives until its last reader on the device has run; inputs, uploads and graph outputs
    live to the end, so that the device could finish alone. Tensors of unknown size count
    nothing. O(layers + edges).
    """
    weights = sum(graph.layers[layer].weight_bytes for layer in cut.device)
    kept = {*cut.uploads, *graph.outputs}
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
            if not readers[name] and name not in kept and name in graph.producer:
                alive -= _size(graph, name)
    return weights + peak


def resident_bytes(held_bytes: int) -> int:
    """Memory of the client's process that holds so many bytes of weights and tensors."""
    return RUNTIME_BYTES + round(COPIES * held_bytes)


def _size(graph: Graph, name: str) -> int:
    return graph.tensors[name].size_bytes or 0
