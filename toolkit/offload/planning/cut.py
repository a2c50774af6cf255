"""The cut: the layers that the device computes and the tensors that are sent."""

from collections.abc import Iterable
from dataclasses import dataclass

from offload.errors import InputError
from offload.graph.cut_names import unknown_tensor, why_not_cuttable
from offload.graph.load import Model
from offload.graph.model import Graph


@dataclass(frozen=True)
class Cut:
    """A down-closed set of layers for the device; the server computes the others.

    Attributes:
        device: indexes of the device's layers, with all layers that they need.
        uploads: tensors that the server needs and the device has (graph inputs included), in the
            order in which the graph computes them.
        downloads: graph outputs that the server computes, in the graph's order.
    """

    device: frozenset[int]
    uploads: tuple[str, ...]
    downloads: tuple[str, ...]


def cut_at(graph: Graph, device: Iterable[int]) -> Cut:
    """The cut with a given device set. O(layers + edges).

    Raises:
        InputError: a device layer needs a layer that isn't in the set.
    """
    layers = frozenset(device)
    for layer in layers:
        for needed in graph.predecessors[layer]:
            if needed not in layers:
                raise InputError(
                    f"layer {graph.layers[layer].name!r} cannot run on the device without"
                    f" {graph.layers[needed].name!r}: cut later or keep both there"
                )
    producer, consumers = graph.producer, graph.consumers
    uploads = tuple(
        name
        for name in (*graph.inputs, *producer)
        if (name not in producer or producer[name] in layers)
        and any(user not in layers for user in consumers.get(name, ()))
    )
    downloads = tuple(
        name for name in graph.outputs if name in producer and producer[name] not in layers
    )
    return Cut(layers, uploads, downloads)


def all_local(graph: Graph) -> Cut:
    """The device computes everything (the paper's LO)."""
    return cut_at(graph, range(len(graph.layers)))


def all_cloud(graph: Graph) -> Cut:
    """The server computes everything (the paper's CO)."""
    return cut_at(graph, ())


def cut_after(graph: Graph, tensors: Iterable[str]) -> Cut:
    """The cut at named tensors: the device computes exactly what they need.

    Raises:
        InputError: the graph has no such tensor; the message lists the nearest names.
    """
    layers = []
    for name in tensors:
        if name in graph.producer:
            layers.append(graph.producer[name])
        elif name not in graph.inputs:
            raise InputError(unknown_tensor(name, (*graph.inputs, *graph.producer)))
    return cut_at(graph, graph.ancestors(layers))


def cut_at_names(model: Model, graph: Graph, names: Iterable[str]) -> Cut:
    """The cut at named tensors of a model: the device computes exactly what they need.

    Unlike `cut_after`, it accepts tensors that no other layer reads, and says why a model cannot
    be cut at a tensor.

    Args:
        model: the loaded model.
        graph: its layers, read so that the names survive (`read_graph`).
        names: the model's inputs, and tensors that its main graph computes from them.

    Raises:
        InputError: the model has no such tensor, or cannot be cut there.
    """
    layer_of = {node: index for index, layer in enumerate(graph.layers) for node in layer.nodes}
    layers = []
    for name in names:
        if name in graph.inputs:
            continue
        layer = layer_of.get(model.values.producer.get(name, -1))
        if layer is None or any(
            name in model.values.consumes[node] for node in graph.layers[layer].nodes
        ):
            raise InputError(why_not_cuttable(model, name))
        layers.append(layer)
    return cut_at(graph, graph.ancestors(layers))
