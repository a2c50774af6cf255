"""Tensors and kernels of the graph that onnxruntime runs after its own optimisations."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from offload.files import write_bytes
from offload.graph.flops import shares_by_work
from offload.graph.load import Model
from offload.graph.model import Graph
from offload.graph.value_index import bodies, nested_nodes

_BLOCKED = "_nchwc"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
# Where no kernel supports a tensor's type (most float16 tensors on the CPU), onnxruntime computes
# the tensor in float32, under a name with this prefix and, if needed for uniqueness, a number.
_WIDENED = "InsertedPrecisionFreeCast_"
_MADE_UNIQUE = re.compile(r"(_token)?_\d+$")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node of the optimised graph: its name, inputs and outputs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def name_kernels(optimized: Path) -> tuple[Kernel, ...]:
    """Give every node of an optimised model file a unique name, in place, and list them.

    The engine reports times by node name, and exporters repeat names or leave them out. Copies to
    and from a GPU's memory are removed: the engine adds its own when it loads the file, and refuses
    those that it finds there.
    """
    proto = onnx.load(optimized, load_external_data=False)
    _remove_copies(proto.graph)
    for index, node in enumerate(proto.graph.node):
        node.name = f"kernel-{index}"
    write_bytes(optimized, proto.SerializeToString())
    return tuple(
        Kernel(node.name, tuple(filter(None, node.input)), tuple(filter(None, node.output)))
        for node in proto.graph.node
    )


def _remove_copies(graph: onnx.GraphProto) -> None:
    """Remove the engine's copy nodes, in subgraphs too, and give tensors one name again.

    Of a copy's two tensors the one in the other memory is named after the original: `t` and
    `t_CUDAExecutionProvider`.
    """
    copies = [node for node in graph.node if node.op_type in _COPIES]
    names: dict[str, str] = {}
    for copy in copies:
        original, other = sorted((copy.input[0], copy.output[0]), key=len)
        names[other] = original
        graph.node.remove(copy)
    for node in graph.node:
        for body in bodies(node):
            _remove_copies(body)
        for each in nested_nodes(node) if names else ():
            each.input[:] = [names.get(name, name) for name in each.input]
            each.output[:] = [names.get(name, name) for name in each.output]


def surviving_tensors(model: Model, kernels: Iterable[Kernel]) -> frozenset[str]:
    """Names, in the source model, of the tensors that the kernels produce."""
    producer = model.values.producer
    return frozenset(_source(name, producer) for kernel in kernels for name in kernel.outputs)


def kernel_layers(
    model: Model, graph: Graph, kernels: tuple[Kernel, ...]
) -> Mapping[str, Mapping[int, float]]:
    """The layers that each kernel's time belongs to, with their shares of it, by kernel name.

    A kernel does the work of the nodes between its inputs and its outputs. If these nodes are in
    several layers (a cut splits the fused kernel, or several kernels compute a tensor again), its
    time is divided among them by their work. Kernels that the engine added (casts, layout changes)
    count for the layer that consumes their output, or at the end of the graph for the layer that
    produces their input. When the engine uses a layout in blocks of channels, it renames a kernel
    after its output while it loads the file: the result contains this name too.

    O(kernels + edges), where a tensor that several kernels compute counts for each of them.
    """
    producer = model.values.producer
    layer_of = {node: index for index, layer in enumerate(graph.layers) for node in layer.nodes}
    surviving = surviving_tensors(model, kernels)
    shares: dict[str, Mapping[int, float]] = {}
    consumer_shares: dict[str, Mapping[int, float]] = {}
    for kernel in reversed(kernels):
        produced = {_source(name, producer) for name in kernel.outputs}
        candidates = [consumer_shares[name] for name in kernel.outputs if name in consumer_shares]
        if not produced <= {_source(name, producer) for name in kernel.inputs}:
            nodes = _nodes_of_kernel(model, produced, surviving)
            counts = Counter(layer_of[node] for node in nodes if node in layer_of)
            parts = {layer: n / len(graph.layers[layer].nodes) for layer, n in counts.items()}
            candidates = [shares_by_work(graph, parts), *candidates] if parts else candidates
        candidates += [
            {layer_of[node]: 1.0}
            for name in kernel.inputs
            if (node := producer.get(_source(name, producer), -1)) in layer_of
        ]
        if candidates:
            names = (kernel.name, *(name + _BLOCKED for name in kernel.outputs))
            shares.update(dict.fromkeys(names, candidates[0]))
            consumer_shares.update(dict.fromkeys(kernel.inputs, candidates[0]))
    return shares


def _nodes_of_kernel(model: Model, produced: Iterable[str], surviving: frozenset[str]) -> set[int]:
    """The nodes that compute some tensors from tensors that exist in the engine."""
    values = model.values
    pending = [values.producer[name] for name in produced if name in values.producer]
    nodes: set[int] = set()
    while pending:
        node = pending.pop()
        if node not in nodes:
            nodes.add(node)
            inner = (name for name in values.consumes[node] if name not in surviving)
            pending += [values.producer[name] for name in inner if name in values.producer]
    return nodes


def _source(name: str, producer: Mapping[str, int]) -> str:
    """The source model's name of a tensor of the optimised graph."""
    widened = name.removeprefix(_WIDENED)
    if name in producer or widened == name:
        return name
    bare = _MADE_UNIQUE.sub("", widened)
    return bare if widened not in producer and bare in producer else widened
