"""A graph: layers in topological order and the tensors between them.

A layer is the unit of cutting and scheduling: one or more ONNX nodes that ONNX Runtime
runs as one kernel. Constant nodes (nodes that depend on no graph input) are in no layer: they
are copied into every part that needs them.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that passes between layers, or in or out of the graph.

    Attributes:
        name: its name in the ONNX graph.
        dtype: ONNX element type in lower case (`float`, `float16`, `int64`, `string`, ...), or
            None when it isn't a tensor (sequence, map, optional) or isn't known.
        shape: sizes after binding dynamic dimensions; None in place of a size that depends on
            data; None for the whole when even the rank is unknown.
        size_bytes: bytes of the dense tensor, None when dtype or a size is unknown; the measured
            average where a size depends on data.
    """

    name: str
    dtype: str | None
    shape: tuple[int | None, ...] | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One schedulable unit.

    Attributes:
        name: unique in the graph; stable for the same file.
        op: operator types of its nodes joined by `+` (`Conv+Relu`).
        nodes: indexes of its nodes in the main graph of the ONNX file, ascending.
        inputs: tensors it needs from other layers or from the graph's inputs (captures of
            If/Loop/Scan bodies included; weights and constants not), in order of first use.
        outputs: tensors it produces that another layer needs or that the graph returns.
        flops: multiply-adds times two where the work of all its nodes is known, else None.
        weight_bytes: bytes of the initializers it uses.
        assumed_flops: where `flops` is None, the work that could be counted, plus the average work
            of the model's nodes of the same kind for each node that could not be counted.
    """

    name: str
    op: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: float | None = None
    weight_bytes: int = 0
    assumed_flops: float = 0.0


@dataclass(frozen=True)
class Graph:
    """A model as layers in a topological order that follows the file's own order.

    Attributes:
        name: the model's name for humans.
        digest: SHA-256 hex digest of the model's bytes (external data included).
        inputs: tensors that the caller must provide, in file order. Inputs with a default in the
            file are not listed: they count as weights, and are inputs of every part that uses them.
        outputs: tensors the model returns, in file order.
        layers: topologically ordered.
        tensors: every tensor named in inputs, outputs and layers.
        uncounted_share: share of the work that could not be counted, from 0 to 1: the work assumed
            for nodes of unknown work, divided by all work.
        uncounted: operators of those nodes, the most frequent first.
    """

    name: str
    digest: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    uncounted_share: float = 0.0
    uncounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @cached_property
    def producer(self) -> Mapping[str, int]:
        """Index of the layer that produces a tensor; graph inputs have none."""
        return MappingProxyType(
            {name: index for index, layer in enumerate(self.layers) for name in layer.outputs}
        )

    @cached_property
    def consumers(self) -> Mapping[str, tuple[int, ...]]:
        """Indexes of the layers that need a tensor, ascending."""
        consumers: dict[str, list[int]] = {}
        for index, layer in enumerate(self.layers):
            for name in layer.inputs:
                consumers.setdefault(name, []).append(index)
        return MappingProxyType({name: tuple(layers) for name, layers in consumers.items()})

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each layer, the layers it directly needs, ascending."""
        return tuple(
            tuple(sorted({self.producer[name] for name in layer.inputs if name in self.producer}))
            for layer in self.layers
        )

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each layer, the layers that directly need it, ascending."""
        successors: list[list[int]] = [[] for _ in self.layers]
        for index, before in enumerate(self.predecessors):
            for predecessor in before:
                successors[predecessor].append(index)
        return tuple(map(tuple, successors))

    def sized(self, sizes: Mapping[str, int]) -> "Graph":
        """The graph with sizes in bytes set for tensors of unknown size, by name."""
        tensors = {
            name: replace(tensor, size_bytes=sizes[name])
            if tensor.size_bytes is None and name in sizes
            else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def ancestors(self, layers: Iterable[int]) -> frozenset[int]:
        """Some layers and all layers that they depend on: the smallest down-closed superset."""
        closed: set[int] = set()
        pending = list(layers)
        while pending:
            layer = pending.pop()
            if layer not in closed:
                closed.add(layer)
                pending.extend(self.predecessors[layer])
        return frozenset(closed)


def boundary(
    members: Iterable[int],
    consumes: Callable[[int], Iterable[str]],
    produces: Callable[[int], Iterable[str]],
    consumers: Mapping[str, Iterable[int]],
    returned: Container[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that enter and leave a set of nodes or layers, each once, in order of first use.

    Args:
        members: the nodes or layers.
        consumes: names that a member needs.
        produces: names that a member produces.
        consumers: all nodes or layers that need a name.
        returned: names that the graph returns.
    """
    members = list(members)
    inside = set(members)
    produced = [name for member in members for name in produces(member)]
    own = set(produced)
    entering = (name for member in members for name in consumes(member) if name not in own)
    leaving = (
        name
        for name in produced
        if name in returned or not inside.issuperset(consumers.get(name, ()))
    )
    return tuple(dict.fromkeys(entering)), tuple(dict.fromkeys(leaving))
