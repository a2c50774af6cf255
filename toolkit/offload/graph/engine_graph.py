"""Read the graph that onnxruntime runs after its own optimisations: its tensors and kernels."""

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

_BLOCKED = "_nchwc"
# Where no kernel takes a tensor as it is (most float16 tensors on the CPU), onnxruntime computes it
# in float32 under a name that begins so, and ends with a number where it had to be made unique.
_WIDENED = "InsertedPrecisionFreeCast_"
_MADE_UNIQUE = re.compile(r"(_token)?_\d+$")


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


def surviving_tensors(model: Model, kernels: Iterable[Kernel]) -> frozenset[str]:
    """Names, in the source model, of the tensors that the kernels make."""
    producer = model.values.producer
    return frozenset(_source(name, producer) for kernel in kernels for name in kernel.outputs)


def kernel_layers(
    model: Model, graph: Graph, kernels: tuple[Kernel, ...]
) -> Mapping[str, Mapping[int, float]]:
    """The layers that each kernel's time belongs to, with their shares of it, by kernel name.

    A kernel does the work of the nodes between the tensors it reads and those it makes. Where
    these are in several layers (a cut breaks the fused kernel, or several kernels compute a
    tensor anew), its time is shared among them by their work. Kernels that the engine added
    itself (casts, layout changes) count for the layer that reads what they make, or, at the very
    end, for the one that makes what they read. Where the engine lays a kernel's tensors out in
    blocks of channels as it loads the file, it renames the kernel after its output: that name is
    known too.

    O(kernels + edges), a tensor that several kernels compute counted for each of them.
    """
    producer = model.values.producer
    layer_of = {node: index for index, layer in enumerate(graph.layers) for node in layer.nodes}
    kept = surviving_tensors(model, kernels)
    found: dict[str, Mapping[int, float]] = {}
    read_by: dict[str, Mapping[int, float]] = {}
    for kernel in reversed(kernels):
        made = {_source(name, producer) for name in kernel.outputs}
        known = [read_by[name] for name in kernel.outputs if name in read_by]
        if not made <= {_source(name, producer) for name in kernel.inputs}:
            nodes = _between(model, made, kept)
            counts = Counter(layer_of[node] for node in nodes if node in layer_of)
            parts = {layer: n / len(graph.layers[layer].nodes) for layer, n in counts.items()}
            known = [shares_by_work(graph, parts), *known] if parts else known
        known += [
            {layer_of[node]: 1.0}
            for name in kernel.inputs
            if (node := producer.get(_source(name, producer), -1)) in layer_of
        ]
        if known:
            names = (kernel.name, *(name + _BLOCKED for name in kernel.outputs))
            found.update(dict.fromkeys(names, known[0]))
            read_by.update(dict.fromkeys(kernel.inputs, known[0]))
    return found


def _between(model: Model, made: Iterable[str], kept: frozenset[str]) -> set[int]:
    """The nodes that make some tensors from others that the engine keeps."""
    values = model.values
    pending = [values.producer[name] for name in made if name in values.producer]
    found: set[int] = set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            inner = (name for name in values.consumes[node] if name not in kept)
            pending += [values.producer[name] for name in inner if name in values.producer]
    return found


def _source(name: str, producer: Mapping[str, int]) -> str:
    """The source model's name of a tensor of the optimised graph."""
    widened = name.removeprefix(_WIDENED)
    if name in producer or widened == name:
        return name
    bare = _MADE_UNIQUE.sub("", widened)
    return bare if widened not in producer and bare in producer else widened
