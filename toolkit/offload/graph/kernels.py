"""Read the graph ONNX Runtime has after its own optimisations: which tensors and kernels exist."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from offload.files import write_bytes
from offload.graph.load import Model
from offload.graph.model import Graph

_BLOCKED = "_nchwc"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of the optimised graph: the name it was given, and what it reads and makes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def name_kernels(optimized: Path) -> tuple[Kernel, ...]:
    """Give every node of an optimised model file a unique name, in place, and list them.

    The engine reports times by node name, which exporters repeat or leave out.
    """
    proto = onnx.load(optimized, load_external_data=False)
    for index, node in enumerate(proto.graph.node):
        node.name = f"kernel-{index}"
    write_bytes(optimized, proto.SerializeToString())
    return tuple(
        Kernel(node.name, tuple(filter(None, node.input)), tuple(filter(None, node.output)))
        for node in proto.graph.node
    )


def kernel_layers(model: Model, graph: Graph, kernels: tuple[Kernel, ...]) -> Mapping[str, int]:
    """The layer each kernel's time belongs to, by kernel name.

    A kernel belongs to the layer whose nodes make one of its outputs. Kernels that the engine
    added itself (casts, layout changes) count for the layer that reads them, or, at the very
    end, for the one they read. Where the engine lays a kernel's tensors out in blocks of channels
    as it loads the file, it renames the kernel after its output: that name is known too.
    O(kernels + nodes).
    """
    maker = {
        name: index
        for index, layer in enumerate(graph.layers)
        for node in layer.nodes
        for name in model.proto.graph.node[node].output
    }
    found: dict[str, int] = {}
    read_by: dict[str, int] = {}
    for kernel in reversed(kernels):
        known = [maker[name] for name in kernel.outputs if name in maker]
        known += [read_by[name] for name in kernel.outputs if name in read_by]
        known += [maker[name] for name in kernel.inputs if name in maker]
        if known:
            names = (kernel.name, *(name + _BLOCKED for name in kernel.outputs))
            found.update(dict.fromkeys(names, known[0]))
            read_by.update(dict.fromkeys(kernel.inputs, known[0]))
    return found
