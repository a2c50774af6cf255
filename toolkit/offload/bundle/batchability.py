"""Whether rows of several callers may run through a segment together with the same results."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

from onnx import NodeProto, TensorProto, helper, numpy_helper

from offload.bundle.subgraph import Part
from offload.graph.infer import as_tensor
from offload.graph.load import Model
from offload.graph.onnx_file import is_external
from offload.graph.value_index import (
    FunctionKey,
    deterministic_functions,
    function_key,
    is_deterministic,
)


class BatchDim(Enum):
    """How a value depends on the rows that run together.

    `SAME`: not at all, nor on how many they are. `ROWS`: axis 0 has one entry for each row, made
    of that row alone.
    """

    SAME = "same"
    ROWS = "rows"


Sizes: TypeAlias = tuple[bool, ...]
"""Whole numbers in a row: True where one is the number of rows; the others are the same."""

Known: TypeAlias = BatchDim | Sizes
SAME, ROWS = BatchDim.SAME, BatchDim.ROWS
_MOST = 64


@dataclass(frozen=True)
class BatchFacts:
    """What is known of a model's values.

    Attributes:
        model: the model.
        states: how values depend on the rows, as far as found.
    """

    model: Model
    states: dict[str, Known] = field(default_factory=dict)

    def state(self, name: str) -> Known | None:
        """How a value depends on the rows; None: it isn't known (yet)."""
        values = self.model.values
        if name in values.defaults or values.is_constant(name):
            return SAME
        return self.states.get(name)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a value, None for one that may vary; None: not even its rank is known."""
        found = self.model.types.inferred(name)  # what files declare is often wrong
        return None if found is None else as_tensor(name, found).shape

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """The numbers of a small constant, flat; None when they are not known for certain."""
        tensor = self._stored.get(name)
        if tensor is None or not self.model.values.is_constant(name):
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
        return deterministic_functions(self.model.proto)

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
class NodeView:
    """One node with what is known of its inputs, of which some depend on the rows."""

    node: NodeProto
    facts: BatchFacts

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


Rule = Callable[[NodeView], Known | None]

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr"
    " BitwiseXor Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual"
    " HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul"
    " Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus"
    " Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
_EACH_ALONE = (
    "Conv ConvTranspose QLinearConv AveragePool LpPool MaxPool GlobalAveragePool GlobalLpPool"
    " GlobalMaxPool InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd"
    " ReduceSum ReduceSumSquare"
)


def _rows(holds: bool) -> BatchDim | None:
    return ROWS if holds else None


def _elementwise(look: NodeView) -> Known | None:
    return _rows(look.aligned() is not None)


def _passing(look: NodeView) -> Known | None:
    return look.state(0) if look.count == 1 else None


def _each_alone(look: NodeView) -> Known | None:
    """One output only: the indices that MaxPool can give count through all rows."""
    single = len([name for name in look.node.output if name]) == 1
    return _rows(look.only_first() and (look.rank(0) or 0) >= 3 and single)


def _batch_normalization(look: NodeView) -> Known | None:
    training = look.attribute("training_mode", 0) or len(look.node.output) > 1
    return _rows(look.only_first() and (look.rank(0) or 0) >= 2 and not training)


def _dropout(look: NodeView) -> Known | None:
    training = look.numbers(2) if look.name(2) else (0.0,)
    return _rows(look.only_first() and training is not None and not any(training))


def _along(default: int) -> Rule:
    """The first input is worked on along an axis; what else there is, is the same for all."""

    def rule(look: NodeView) -> Known | None:
        axis = look.attribute("axis", default)
        return _rows(look.only_first() and look.within((axis,), look.rank(0)))

    return rule


def _softmax(look: NodeView) -> Known | None:
    return _along(-1 if look.opset >= 13 else 1)(look)


def _normalization(look: NodeView) -> Known | None:
    rank = look.rank(0)
    apart = look.within((look.attribute("axis", -1),), rank)
    affine = (place for place in range(1, len(look.node.input)) if look.name(place))
    fits = rank is not None and all(look.beneath(place, rank) for place in affine)
    return _rows(look.only_first() and apart and fits)


def _quantize(look: NodeView) -> Known | None:
    scale = look.shape(1)
    if scale is None or len(scale) > 1 or not look.only_first():
        return None
    apart = look.within((look.attribute("axis", 1),), look.rank(0))
    return _rows(scale == () or scale == (1,) or apart)


def _reduce(look: NodeView) -> Known | None:
    axes = look.list("axes", 1)
    if not axes and ((look.name(1) and axes is None) or not look.only_first()):
        return None
    if not axes:
        return _rows(bool(look.attribute("noop_with_empty_axes", 0)))
    return _rows(look.only_first() and look.within(axes, look.rank(0)))


def _gemm(look: NodeView) -> Known | None:
    plain = look.state(0) is ROWS and not look.attribute("transA", 0)
    added = not look.name(2) or look.beneath(2, 2) or (look.state(2) is ROWS and look.rank(2) == 2)
    return _rows(plain and look.state(1) is SAME and added)


def _matmul(look: NodeView) -> Known | None:
    left, right = look.rank(0), look.rank(1)
    if left is None or right is None:
        return None
    match look.state(0), look.state(1):
        case BatchDim.ROWS, BatchDim.ROWS:
            return _rows(left == right >= 3)
        case BatchDim.ROWS, BatchDim.SAME:
            return _rows(right <= 2 == left or (left >= 3 and look.beneath(1, left)))
        case BatchDim.SAME, BatchDim.ROWS:
            return _rows(right >= 3 and look.beneath(0, right))
    return None


def _einsum(look: NodeView) -> Known | None:
    """Rows have a letter of their own: first wherever they are, and nowhere else."""
    left, arrow, right = look.attribute("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left + right or not right or len(terms) != len(look.node.input):
        return None
    letter = right[0]
    for place, term in enumerate((*terms, right)):
        state = ROWS if place == len(terms) else look.state(place)
        wanted = 1 if state is ROWS else 0
        if state not in (ROWS, SAME) or term.count(letter) != wanted:
            return None
        if wanted and term[0] != letter:
            return None
    return ROWS


def _flatten(look: NodeView) -> Known | None:
    axis, rank = look.attribute("axis", 1), look.rank(0)
    return _rows(look.state(0) is ROWS and (axis == 1 or (rank is not None and axis + rank == 1)))


def _reshape(look: NodeView) -> Known | None:
    if look.state(0) is not ROWS:
        return None
    target = look.state(1)
    if isinstance(target, tuple):
        return _rows(_leads(target))
    return _rows(_keeps(look, look.numbers(1)))


def _keeps(look: NodeView, target: tuple[float, ...] | None) -> bool:
    """Whether a constant shape leaves each row as many numbers as it had."""
    shape, literal = look.shape(0), bool(look.attribute("allowzero", 0))
    if not target or shape is None:
        return False
    if target[0] == 0:
        return not literal
    sizes = [
        shape[place] if size == 0 and not literal and place < len(shape) else size
        for place, size in enumerate(target)
    ]
    inner = [size for size in (*shape[1:], *sizes[1:]) if size is not None and size > 0]
    known = len(inner) == len(shape) + len(sizes) - 2
    return known and target[0] == -1 and math.prod(shape[1:]) == math.prod(sizes[1:])  # type: ignore[arg-type]


def _leads(sizes: Sizes) -> bool:
    return sizes[:1] == (True,) and not any(sizes[1:])


def _expand(look: NodeView) -> Known | None:
    state, target, rank, length = look.state(0), look.state(1), look.rank(0), look.shape(1)
    if isinstance(target, tuple):
        if state is ROWS:
            return _rows(_leads(target) and len(target) == rank)
        return _rows(_leads(target) and look.beneath(0, len(target)))
    count = length[0] if length else None
    if not look.only_first() or rank is None or count is None:
        return None
    numbers = look.numbers(1)
    return _rows(count < rank or (count == rank and numbers is not None and numbers[0] == 1))


def _filled(look: NodeView) -> Known | None:
    sizes = look.state(0)
    return _rows(isinstance(sizes, tuple) and _leads(sizes))


def _tile(look: NodeView) -> Known | None:
    repeats = look.numbers(1)
    return _rows(look.only_first() and bool(repeats) and repeats is not None and repeats[0] == 1)


def _transpose(look: NodeView) -> Known | None:
    order = look.attribute("perm")
    kept = order[0] == 0 if order else look.rank(0) == 1
    return _rows(look.state(0) is ROWS and kept)


def _squeeze(look: NodeView) -> Known | None:
    state = look.state(0)
    if isinstance(state, tuple):
        return state
    axes = look.list("axes", 1)
    return _rows(state is ROWS and bool(axes) and look.within(axes, look.rank(0)))


def _unsqueeze(look: NodeView) -> Known | None:
    state, axes, rank = look.state(0), look.list("axes", 1), look.rank(0)
    if isinstance(state, tuple):
        return state
    more = None if rank is None or axes is None else rank + len(axes)
    return _rows(state is ROWS and look.within(axes, more))


def _concat(look: NodeView) -> Known | None:
    places = range(len(look.node.input))
    if any(isinstance(look.state(place), tuple) for place in places):
        return _chained(look)
    apart = look.within((look.attribute("axis", 0),), look.rank(0))
    return _rows(apart and all(look.state(place) is ROWS for place in places))


def _chained(look: NodeView) -> Sizes | None:
    """Sizes one after the other, such as the target of a Reshape."""
    found: list[bool] = []
    for place in range(len(look.node.input)):
        state, shape = look.state(place), look.shape(place)
        if shape is None or len(shape) != 1:
            return None
        if isinstance(state, tuple):
            found.extend(state)
        elif state is SAME and shape[0] is not None:
            found.extend([False] * shape[0])
        else:
            return None
    return tuple(found)


def _shape(look: NodeView) -> Known | None:
    rank = look.rank(0)
    if look.state(0) is not ROWS or rank is None:
        return None
    sizes = tuple(axis == 0 for axis in range(rank))
    return _sizes(sizes[look.attribute("start", 0) : look.attribute("end", rank)])


def _sizes(sizes: Sizes) -> Known:
    return sizes if any(sizes) else SAME


def _gather(look: NodeView) -> Known | None:
    data, picked, axis = look.state(0), look.state(1), look.attribute("axis", 0)
    if isinstance(data, tuple):
        return _picked(data, look.numbers(1), look.rank(1))
    if data is SAME and picked is ROWS:
        rank = look.rank(0)
        return _rows(axis == 0 or (rank is not None and axis + rank == 0))
    return _along(0)(look)


def _picked(data: Sizes, places: tuple[float, ...] | None, rank: int | None) -> Known | None:
    if places is None or rank is None or rank > 1:
        return None
    if not all(-len(data) <= place < len(data) for place in places):
        return None
    return _sizes(tuple(data[int(place)] for place in places))


def _gather_elements(look: NodeView) -> Known | None:
    both = look.state(0) is ROWS and look.state(1) is ROWS
    return _rows(both and look.within((look.attribute("axis", 0),), look.rank(0)))


def _slice(look: NodeView) -> Known | None:
    data, axes = look.state(0), look.list("axes", 3)
    if isinstance(data, tuple):
        return _sliced(look, data)
    return _rows(look.only_first() and bool(axes) and look.within(axes, look.rank(0)))


def _sliced(look: NodeView, data: Sizes) -> Known | None:
    starts, ends = look.list("starts", 1), look.list("ends", 2)
    steps = look.numbers(4) if look.name(4) else (1.0,)
    if not starts or not ends or not steps:
        return None
    start, end, step = (int(numbers[0]) for numbers in (starts, ends, steps))
    return _sizes(data[start:end:step]) if step > 0 else None


def _pad(look: NodeView) -> Known | None:
    pads, rank = look.list("pads", 1), look.rank(0)
    if not look.only_first() or rank is None:
        return None
    if look.name(3):
        return _rows(look.within(look.numbers(3), rank))
    return _rows(pads is not None and len(pads) == 2 * rank and pads[0] == pads[rank] == 0)


def _resize(look: NodeView) -> Known | None:
    if look.state(0) is not ROWS or look.attribute("coordinate_transformation_mode", "") == (
        "tf_crop_and_resize"
    ):
        return None
    axes = look.attribute("axes")
    if axes is not None:
        return _rows(look.only_first() and look.within(tuple(axes), look.rank(0)))
    sizes = look.state(3)
    if isinstance(sizes, tuple):
        stretched = look.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
        return _rows(_leads(sizes) and len(sizes) == look.rank(0) and stretched)
    scales = look.list("scales", 1 if look.opset < 11 or look.node.op_type == "Upsample" else 2)
    return _rows(look.only_first() and bool(scales) and scales is not None and scales[0] == 1)


def _cumulative(look: NodeView) -> Known | None:
    return _rows(look.only_first() and look.within(look.numbers(1), look.rank(0)))


def _one_hot(look: NodeView) -> Known | None:
    rank = look.rank(0)
    more = None if rank is None else rank + 1
    return _rows(look.only_first() and look.within((look.attribute("axis", -1),), more))


def _triangle(look: NodeView) -> Known | None:
    return _rows(look.only_first() and (look.rank(0) or 0) >= 3)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_EACH_ALONE.split(), _each_alone),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("Identity", "Cast"), _passing),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("ArgMax", "ArgMin", "Split"), _along(0)),
    **dict.fromkeys(("TopK", "LpNormalization"), _along(-1)),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "CumSum": _cumulative,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}


_OLDEST = 7  # before it, broadcasting and batch normalisation followed other rules


def why_alone(model: Model, part: Part) -> str:
    """Why rows of several callers may not run through a part together; empty: they may.

    Where they may, every input and output has an open axis 0 of one length, and what is
    computed of a row does not depend on the others, but for the last bits: engines add in
    another order when there is more to do.

    Args:
        model: the source.
        part: the nodes and what goes in and out.
    """
    facts = BatchFacts(model)
    if facts.opset < _OLDEST:
        return f"operator set {facts.opset} is too old to tell"
    closed = _closed_input(model, part)
    if closed or not part.inputs:
        return closed or "it has no inputs"
    facts.states.update(dict.fromkeys(part.inputs, ROWS))
    inside = set(part.nodes)
    nodes = list(model.proto.graph.node)
    for index in model.values.order:
        if index in inside and index not in model.values.constant:
            found = _state(facts, nodes[index], model.values.consumes[index])
            if found is None:
                return _mixing(nodes[index])
            facts.states.update(dict.fromkeys(filter(None, nodes[index].output), found))
    lost = [name for name in part.outputs if facts.state(name) is not ROWS]
    return f"output {lost[0]!r} has no row for each of the inputs'" if lost else ""


def _state(facts: BatchFacts, node: NodeProto, reads: tuple[str, ...]) -> Known | None:
    if all(facts.state(name) is SAME for name in reads):
        return SAME if is_deterministic(node, facts.calls) else None
    own = node.domain in ("", "ai.onnx") and function_key(node) not in facts.functions
    rule = RULES.get(node.op_type) if own else None
    return rule(NodeView(node, facts)) if rule else None


def _mixing(node: NodeProto) -> str:
    named = f" {node.name!r}" if node.name else ""
    return f"{node.op_type}{named} may mix rows"


def _closed_input(model: Model, part: Part) -> str:
    """What is wrong with an input's axis 0; empty: nothing."""
    leading: set[str] = set()
    inner: set[str] = set()
    for name in part.inputs:
        typed = model.types.inferred(name)
        if typed is None or not typed.tensor_type.HasField("shape"):
            return f"the first axis of input {name!r} is not known"
        if not typed.tensor_type.shape.dim:
            return f"input {name!r} is a single number, which has no rows"
        first, *rest = typed.tensor_type.shape.dim
        if first.HasField("dim_value"):
            return f"the first axis of input {name!r} is fixed at {first.dim_value}"
        leading.add(first.dim_param)
        inner.update(dim.dim_param for dim in rest)
    shared = sorted((leading & inner) - {""})
    return f"{shared[0]!r} is the size of first and of other axes" if shared else ""
