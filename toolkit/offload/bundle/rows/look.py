"""What is known of a node and its values while rows run together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

from onnx import NodeProto, TensorProto, helper, numpy_helper

from offload.graph.external import is_external
from offload.graph.infer import as_tensor
from offload.graph.load import Model
from offload.graph.scope import FunctionKey, function_key, repeatable_calls


class State(Enum):
    """How a value depends on the rows that run together.

    `SAME`: not at all, nor on how many they are. `ROWS`: axis 0 has one entry for each row, made
    of that row alone.
    """

    SAME = "same"
    ROWS = "rows"


Sizes: TypeAlias = tuple[bool, ...]
"""Whole numbers in a row: True where one is the number of rows; the others are the same."""

Known: TypeAlias = State | Sizes
SAME, ROWS = State.SAME, State.ROWS
_MOST = 64


@dataclass(frozen=True)
class Facts:
    """What is known of a model's values.

    Attributes:
        model: the model.
        states: how values depend on the rows, as far as found.
    """

    model: Model
    states: dict[str, Known] = field(default_factory=dict)

    def state(self, name: str) -> Known | None:
        """How a value depends on the rows; None: it isn't known (yet)."""
        wiring = self.model.wiring
        if name in wiring.defaults or wiring.is_constant(name):
            return SAME
        return self.states.get(name)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a value, None for one that may vary; None: not even its rank is known."""
        found = self.model.types.inferred(name)  # what files declare is often wrong
        return None if found is None else as_tensor(name, found).shape

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """The numbers of a small constant, flat; None when they are not known for certain."""
        tensor = self._stored.get(name)
        if tensor is None or not self.model.wiring.is_constant(name):
            return None
        if is_external(tensor) or tensor.data_type == TensorProto.STRING:
            return None
        array = numpy_helper.to_array(tensor).ravel()
        return tuple(array.tolist()) if array.size <= _MOST else None

    @cached_property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        found = [e.version for e in self.model.proto.opset_import if e.domain in ("", "ai.onnx")]
        return found[0] if found else 1

    @cached_property
    def functions(self) -> frozenset[FunctionKey]:
        """Keys of the functions that the model brings along."""
        return frozenset(map(function_key, self.model.proto.functions))

    @cached_property
    def calls(self) -> frozenset[FunctionKey]:
        """Those that give the same answer each time."""
        return repeatable_calls(self.model.proto)

    @cached_property
    def _stored(self) -> Mapping[str, TensorProto]:
        graph = self.model.types.outline.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute:
                tensor = _constant(node)
                if tensor is not None:
                    stored[node.output[0]] = tensor
        return stored


def _constant(node: NodeProto) -> TensorProto | None:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
        numbers = helper.get_attribute_value(attribute)
        whole = attribute.name.startswith("value_int")
        kind = TensorProto.INT64 if whole else TensorProto.FLOAT
        dims = [len(numbers)] if attribute.name.endswith("s") else []
        return helper.make_tensor("", kind, dims, numbers if dims else [numbers])
    return None


@dataclass(frozen=True)
class Look:
    """One node with what is known of its inputs, of which some depend on the rows."""

    node: NodeProto
    facts: Facts

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return self.facts.opset

    @property
    def count(self) -> int:
        """Inputs that are given."""
        return sum(1 for name in self.node.input if name)

    def name(self, place: int) -> str:
        """Name of an input; empty when it isn't given."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def state(self, place: int) -> Known | None:
        """How an input depends on the rows; one that isn't given is the same for all."""
        name = self.name(place)
        return self.facts.state(name) if name else SAME

    def rank(self, place: int) -> int | None:
        """Number of axes of an input."""
        shape = self.shape(place)
        return None if shape is None else len(shape)

    def shape(self, place: int) -> tuple[int | None, ...] | None:
        """Sizes of an input."""
        name = self.name(place)
        return self.facts.shape(name) if name else None

    def numbers(self, place: int) -> tuple[float, ...] | None:
        """An input's numbers where they are constant, few and known."""
        name = self.name(place)
        return self.facts.numbers(name) if name else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; text as text."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def list(self, name: str, place: int) -> tuple[float, ...] | None:
        """Numbers that older versions give as an attribute, newer ones as an input."""
        given = self.attribute(name)
        return self.numbers(place) if given is None else tuple(given)

    def only_first(self) -> bool:
        """Whether the first input has rows and all others are the same for all."""
        rest = range(1, len(self.node.input))
        return self.state(0) is ROWS and all(self.state(place) is SAME for place in rest)

    def beneath(self, place: int, rank: int) -> bool:
        """Whether an input that is the same for all leaves axis 0 of such a rank alone."""
        shape = self.shape(place)
        if self.state(place) is not SAME or shape is None:
            return False
        return len(shape) < rank or (len(shape) == rank and shape[0] == 1)

    def aligned(self) -> int | None:
        """The rank of the inputs that have rows, where numpy's broadcasting keeps rows apart."""
        places = [place for place, name in enumerate(self.node.input) if name]
        ranks = {self.rank(place) for place in places if self.state(place) is ROWS}
        if len(ranks) != 1 or (rank := ranks.pop()) is None:
            return None
        rest = (place for place in places if self.state(place) is not ROWS)
        return rank if rank and all(self.beneath(place, rank) for place in rest) else None

    def within(self, axes: tuple[float, ...] | None, rank: int | None) -> bool:
        """Whether axes are known and none is axis 0, of a tensor of that rank."""
        if axes is None or (any(axis < 0 for axis in axes) and rank is None):
            return False
        return all((axis if axis >= 0 else axis + (rank or 0)) > 0 for axis in axes)
