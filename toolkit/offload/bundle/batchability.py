"""Whether a server may run rows of several sessions through a part together, as one batch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from onnx import NodeProto, TensorProto, defs, helper, numpy_helper, shape_inference

from offload.bundle.subgraph import Part
from offload.graph.load import Model
from offload.graph.onnx_file import is_external
from offload.graph.onnx_types import as_tensor
from offload.graph.value_index import (
    FunctionKey,
    attribute_value,
    function_key,
    is_deterministic,
)


class BatchDim(Enum):
    """How a value depends on the rows of a batch.

    `SAME`: it depends neither on the rows nor on their number. `ROWS`: axis 0 has one entry for
    each row, computed from that row alone.
    """

    SAME = "same"
    ROWS = "rows"


Sizes: TypeAlias = tuple[bool, ...]
"""A list of integers, such as a shape: True for an entry that is the number of rows.

The other entries do not depend on the batch.
"""

Dependence: TypeAlias = BatchDim | Sizes
SAME, ROWS = BatchDim.SAME, BatchDim.ROWS
_MOST_NUMBERS = 64  # larger constants are not read
_OLDEST_OPSET = 7  # older ones have other rules for broadcasting and batch normalisation


def why_alone(model: Model, part: Part) -> str:
    """Why rows of several sessions may not run through a part together; empty: they may.

    If they may, every input and output has an open axis 0 of the same length, and the results of
    a row do not depend on the other rows, except for the last bits: engines add in another order
    when a batch is larger.
    """
    facts = BatchFacts(model)
    if facts.opset < _OLDEST_OPSET:
        return f"operator set {facts.opset} is too old: {_OLDEST_OPSET} or later is needed"
    if not part.inputs:
        return "it has no inputs"
    if reason := _why_inputs_have_no_rows(model, part):
        return reason
    facts.dims.update(dict.fromkeys(part.inputs, ROWS))
    facts.dims[""] = SAME  # an input that is left out
    members = set(part.nodes)
    nodes = list(model.proto.graph.node)
    for index in model.values.order:
        if index in members and index not in model.values.constant:
            node = nodes[index]
            dim = _output_dim(NodeView(node, facts), model.values.consumes[index])
            if dim is None:
                return f"{node.op_type}{f' {node.name!r}' if node.name else ''} may mix rows"
            facts.dims.update(dict.fromkeys(filter(None, node.output), dim))
            if dim is ROWS:
                _learn_ranks(NodeView(node, facts))
    for name in part.outputs:
        if facts.dim(name) is not ROWS:
            return f"output {name!r} does not have one row for each input row"
    return ""


def why_rows_depend(model: Model) -> str:
    """Why the model's rows may not be computed separately; empty: they may.

    Required inputs have rows; optional inputs keep their defaults. As `why_alone`.
    """
    inputs = tuple(model.values.inputs)
    outputs = tuple(value.name for value in model.proto.graph.output)
    return why_alone(model, Part(tuple(range(len(model.proto.graph.node))), inputs, outputs))


def _why_inputs_have_no_rows(model: Model, part: Part) -> str:
    """Why axis 0 of an input can't be the batch; empty: it can, for all inputs."""
    leading: set[str] = set()
    inner: set[str] = set()
    for name in part.inputs:
        typed = model.types.inferred(name)
        if typed is None or not typed.tensor_type.HasField("shape"):
            return f"the first axis of input {name!r} is not known"
        if not typed.tensor_type.shape.dim:
            return f"input {name!r} is a scalar, which has no rows"
        first, *others = typed.tensor_type.shape.dim
        if first.HasField("dim_value"):
            return f"the first axis of input {name!r} is fixed at {first.dim_value}"
        leading.add(first.dim_param)
        inner.update(dim.dim_param for dim in others)
    shared = sorted((leading & inner) - {""})
    return f"{shared[0]!r} is the size of a first and of a later axis" if shared else ""


def _output_dim(node: "NodeView", consumes: tuple[str, ...]) -> Dependence | None:
    """How the outputs of a node depend on the rows; None: not known, rows may be mixed."""
    facts, op = node.facts, node.node.op_type
    dims = [facts.dim(name) for name in consumes]
    if all(dim is SAME for dim in dims):
        return SAME if is_deterministic(node.node, facts.model.values.deterministic) else None
    if node.node.domain not in ("", "ai.onnx") or function_key(node.node) in facts.functions:
        return None
    if op == "Shape" or (op in _SIZE_RULES and any(isinstance(dim, tuple) for dim in dims)):
        return _SIZE_RULES[op](node)
    keeps_rows_apart = _ROW_RULES.get(op)
    return ROWS if keeps_rows_apart and keeps_rows_apart(node) else None


def _learn_ranks(view: "NodeView") -> None:
    """Find the ranks of outputs that type inference does not follow.

    It does not follow a Reshape whose target is computed from the number of rows.
    """
    facts, node = view.facts, view.node
    if all(facts.shape(name) is not None for name in node.output if name):
        return
    sizes = view.dim(1) if node.op_type == "Reshape" else None
    if isinstance(sizes, tuple):
        facts.ranks[node.output[0]] = len(sizes)
        return
    types = {}
    for name in filter(None, node.input):
        typed, shape = facts.model.types.inferred(name), facts.shape(name)
        if typed is None or shape is None or not typed.HasField("tensor_type"):
            return
        types[name] = helper.make_tensor_type_proto(typed.tensor_type.elem_type, shape)
    opsets = [helper.make_opsetid("", facts.opset)]
    schema = defs.get_schema(node.op_type, facts.opset, "")
    try:
        found = shape_inference.infer_node_outputs(schema, node, types, opset_imports=opsets)
    except (shape_inference.InferenceError, TypeError, ValueError):
        return
    for name, typed in found.items():
        if typed.tensor_type.HasField("shape"):
            facts.ranks[name] = len(typed.tensor_type.shape.dim)


@dataclass(frozen=True)
class BatchFacts:
    """Facts about a model's values for the rules below.

    Attributes:
        model: the model.
        dims: how values depend on the rows of a batch, as far as known.
        ranks: numbers of axes that type inference does not find.
    """

    model: Model
    dims: dict[str, Dependence] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def dim(self, name: str) -> Dependence | None:
        """How a value depends on the rows of a batch; None: not known."""
        values = self.model.values
        if name in values.defaults or values.is_constant(name):
            return SAME
        return self.dims.get(name)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a value, None for one that may vary; None: not even its rank is known."""
        typed = self.model.types.inferred(name)  # what files declare is often wrong
        shape = None if typed is None else as_tensor(name, typed).shape
        return (None,) * self.ranks[name] if shape is None and name in self.ranks else shape

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """The numbers of a small constant, flat; None when they are not known for certain."""
        stored = self._stored.get(name)
        if isinstance(stored, TensorProto):
            stored = None if is_external(stored) else numpy_helper.to_array(stored)
        array = np.asarray(stored)
        is_text = array.dtype.kind in "OSU"  # or nothing
        if is_text or array.size > _MOST_NUMBERS or not self.model.values.is_constant(name):
            return None
        return tuple(array.ravel().tolist())

    @cached_property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        imports = self.model.proto.opset_import
        return next((e.version for e in imports if e.domain in ("", "ai.onnx")), 1)

    @cached_property
    def functions(self) -> frozenset[FunctionKey]:
        """Keys of the model-local functions."""
        return frozenset(map(function_key, self.model.proto.functions))

    @cached_property
    def _stored(self) -> Mapping[str, object]:
        """Stored tensors, and the values of Constant nodes."""
        graph = self.model.types.outline.graph
        stored: dict[str, object] = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.attribute:
                stored[node.output[0]] = helper.get_attribute_value(node.attribute[0])
        return stored


@dataclass(frozen=True)
class NodeView:
    """A node and the facts about its inputs; `place` is the position of an input."""

    node: NodeProto
    facts: BatchFacts

    def name(self, place: int) -> str:
        """Name of an input; empty when it is left out."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def dim(self, place: int) -> Dependence | None:
        """How an input depends on the rows; an input that is left out is the same for all."""
        return self.facts.dim(self.name(place))

    def shape(self, place: int) -> tuple[int | None, ...] | None:
        """Sizes of an input."""
        return self.facts.shape(self.name(place))

    def rank(self, place: int) -> int | None:
        """Number of axes of an input."""
        shape = self.shape(place)
        return None if shape is None else len(shape)

    def numbers(self, place: int) -> tuple[float, ...] | None:
        """An input's numbers where they are constant, few and known."""
        return self.facts.numbers(self.name(place))

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; bytes are decoded."""
        value = attribute_value(self.node, name, default)
        return value.decode() if isinstance(value, bytes) else value

    def attribute_or_input(self, name: str, place: int) -> tuple[float, ...] | None:
        """Numbers that are an attribute in older opsets and an input in newer ones."""
        value = self.attribute(name)
        return self.numbers(place) if value is None else tuple(value)

    def only_first_has_rows(self) -> bool:
        """Whether the first input has rows and all other inputs are the same for all rows."""
        others = range(1, len(self.node.input))
        return self.dim(0) is ROWS and all(self.dim(place) is SAME for place in others)

    def broadcasts_within_rows(self, place: int, rank: int) -> bool:
        """Whether an input is the same for all rows and has size 1 in axis 0 at this rank."""
        shape = self.shape(place)
        if self.dim(place) is not SAME or shape is None:
            return False
        return len(shape) < rank or (len(shape) == rank and shape[0] == 1)

    def are_inner(self, axes: tuple[float, ...] | None, rank: int | None) -> bool:
        """Whether axes of a tensor of this rank are known and none of them is axis 0."""
        if axes is None or (any(axis < 0 for axis in axes) and rank is None):
            return False
        return all((axis if axis >= 0 else axis + (rank or 0)) > 0 for axis in axes)

    def works_along_inner_axis(self, default: int) -> bool:
        """Whether only the first input has rows and attribute `axis` is not axis 0."""
        axis = self.attribute("axis", default)
        return self.only_first_has_rows() and self.are_inner((axis,), self.rank(0))


# Row rules: whether all outputs of a node have one row for each row of the inputs, computed from
# that row alone, given that some input depends on the rows.
RowRule = Callable[[NodeView], bool]

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr"
    " BitwiseXor Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual"
    " HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul"
    " Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus"
    " Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
_PER_SAMPLE = (
    "Conv ConvTranspose QLinearConv AveragePool LpPool MaxPool GlobalAveragePool GlobalLpPool"
    " GlobalMaxPool InstanceNormalization GroupNormalization LRN DepthToSpace SpaceToDepth"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd"
    " ReduceSum ReduceSumSquare"
)


def _elementwise(node: NodeView) -> bool:
    """Inputs with rows have one rank; the others broadcast to it without touching axis 0."""
    places = [place for place, name in enumerate(node.node.input) if name]
    ranks = {node.rank(place) for place in places if node.dim(place) is ROWS}
    if len(ranks) != 1 or not (rank := ranks.pop()):
        return False
    others = (place for place in places if node.dim(place) is not ROWS)
    return all(node.broadcasts_within_rows(place, rank) for place in others)


def _per_sample(node: NodeView) -> bool:
    """Operators on samples; the indices that MaxPool may return count through all rows."""
    has_one_output = len([name for name in node.node.output if name]) == 1
    return node.only_first_has_rows() and (node.rank(0) or 0) >= 3 and has_one_output


def _normalization(node: NodeView) -> bool:
    rank = node.rank(0)
    if rank is None or not node.works_along_inner_axis(-1):
        return False
    affine = (place for place in range(1, len(node.node.input)) if node.name(place))
    return all(node.broadcasts_within_rows(place, rank) for place in affine)


def _quantize(node: NodeView) -> bool:
    scale = node.shape(1)
    if scale is None or len(scale) > 1 or not node.only_first_has_rows():
        return False
    return scale in ((), (1,)) or node.works_along_inner_axis(1)


def _dropout(node: NodeView) -> bool:
    training = node.numbers(2) if node.name(2) else (0.0,)
    return node.only_first_has_rows() and training is not None and not any(training)


def _reduce(node: NodeView) -> bool:
    axes = node.attribute_or_input("axes", 1)
    if not node.only_first_has_rows() or (axes is None and node.name(1)):
        return False
    return _inner_axes(node, 1) if axes else bool(node.attribute("noop_with_empty_axes", 0))


def _gemm(node: NodeView) -> bool:
    bias_is_apart = (
        not node.name(2)
        or node.broadcasts_within_rows(2, 2)
        or (node.dim(2) is ROWS and node.rank(2) == 2)
    )
    first_has_rows = node.dim(0) is ROWS and not node.attribute("transA", 0)
    return first_has_rows and node.dim(1) is SAME and bias_is_apart


def _matmul(node: NodeView) -> bool:
    left, right = node.rank(0), node.rank(1)
    if left is None or right is None:
        return False
    match node.dim(0), node.dim(1):
        case BatchDim.ROWS, BatchDim.ROWS:
            return left == right >= 3
        case BatchDim.ROWS, BatchDim.SAME:
            return right <= 2 == left or (left >= 3 and node.broadcasts_within_rows(1, left))
        case BatchDim.SAME, BatchDim.ROWS:
            return right >= 3 and node.broadcasts_within_rows(0, right)
    return False


def _einsum(node: NodeView) -> bool:
    """Rows have a letter of their own, which is the first letter of every term with rows."""
    left, arrow, right = node.attribute("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left + right or not right or len(terms) != len(node.node.input):
        return False
    letter = right[0]
    for place, term in enumerate((*terms, right)):
        dim = ROWS if place == len(terms) else node.dim(place)
        if dim not in (ROWS, SAME) or term.count(letter) != (1 if dim is ROWS else 0):
            return False
        if dim is ROWS and term[0] != letter:
            return False
    return True


def _starts_with_rows(sizes: Dependence | None) -> bool:
    """Whether the first of some sizes is the number of rows, and no other is."""
    return isinstance(sizes, tuple) and sizes[:1] == (True,) and not any(sizes[1:])


def _reshape(node: NodeView) -> bool:
    """The target starts with the number of rows, and a row keeps its number of elements."""
    dim, target, shape = node.dim(1), node.numbers(1), node.shape(0)
    if node.dim(0) is not ROWS:
        return False
    if isinstance(dim, tuple):
        return _starts_with_rows(dim)
    if not target or shape is None:
        return False
    zero_copies = not node.attribute("allowzero", 0)
    if target[0] == 0:
        return zero_copies
    sizes = [
        shape[place] if size == 0 and zero_copies and place < len(shape) else size
        for place, size in enumerate(target)
    ]
    inner = [size for size in (*shape[1:], *sizes[1:]) if size is not None and size > 0]
    are_known = len(inner) == len(shape) + len(sizes) - 2
    return are_known and target[0] == -1 and math.prod(shape[1:]) == math.prod(sizes[1:])  # type: ignore[arg-type]


def _expand(node: NodeView) -> bool:
    dim, rank, length = node.dim(1), node.rank(0), node.shape(1)
    if isinstance(dim, tuple):
        if node.dim(0) is ROWS:
            return _starts_with_rows(dim) and len(dim) == rank
        return _starts_with_rows(dim) and node.broadcasts_within_rows(0, len(dim))
    target_rank = length[0] if length else None
    if not node.only_first_has_rows() or rank is None or target_rank is None:
        return False
    target = node.numbers(1)
    return target_rank < rank or (target_rank == rank and target is not None and target[0] == 1)


def _inner_axes(node: NodeView, place: int) -> bool:
    """Whether axes, an attribute or an input, are listed and none of them is axis 0."""
    axes = node.attribute_or_input("axes", place)
    return node.dim(0) is ROWS and bool(axes) and node.are_inner(axes, node.rank(0))


def _unsqueeze(node: NodeView) -> bool:
    axes, rank = node.attribute_or_input("axes", 1), node.rank(0)
    new_rank = None if rank is None or axes is None else rank + len(axes)
    return node.dim(0) is ROWS and node.are_inner(axes, new_rank)


def _gather(node: NodeView) -> bool:
    """Rows of a constant table picked by indices with rows, or an inner axis of data with rows."""
    if node.dim(0) is SAME and node.dim(1) is ROWS:
        axis, rank = node.attribute("axis", 0), node.rank(0)
        return axis == 0 or (rank is not None and axis + rank == 0)
    return node.works_along_inner_axis(0)


def _pad(node: NodeView) -> bool:
    pads, rank = node.attribute_or_input("pads", 1), node.rank(0)
    if not node.only_first_has_rows() or rank is None:
        return False
    if node.name(3):
        return node.are_inner(node.numbers(3), rank)
    return pads is not None and len(pads) == 2 * rank and pads[0] == pads[rank] == 0


def _resize(node: NodeView) -> bool:
    mode = node.attribute("coordinate_transformation_mode", "")
    if node.dim(0) is not ROWS or mode == "tf_crop_and_resize":
        return False
    axes, sizes = node.attribute("axes"), node.dim(3)
    if axes is not None:
        return node.only_first_has_rows() and node.are_inner(tuple(axes), node.rank(0))
    if isinstance(sizes, tuple):
        stretches = node.attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
        return _starts_with_rows(sizes) and len(sizes) == node.rank(0) and stretches
    place = 1 if node.facts.opset < 11 or node.node.op_type == "Upsample" else 2
    scales = node.attribute_or_input("scales", place)
    return node.only_first_has_rows() and _starts_with_one(scales)


def _one_hot(node: NodeView) -> bool:
    """The output has an axis more than the input."""
    axis, rank = node.attribute("axis", -1), node.rank(0)
    new_rank = None if rank is None else rank + 1
    return node.only_first_has_rows() and node.are_inner((axis,), new_rank)


def _all_have_rows(node: NodeView) -> bool:
    """Whether all inputs have rows and attribute `axis` is not axis 0."""
    have_rows = all(node.dim(place) is ROWS for place in range(len(node.node.input)))
    return have_rows and node.are_inner((node.attribute("axis", 0),), node.rank(0))


def _starts_with_one(numbers: tuple[float, ...] | None) -> bool:
    return numbers is not None and numbers[:1] == (1,)


_ROW_RULES: Mapping[str, RowRule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_PER_SAMPLE.split(), _per_sample),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Concat", "GatherElements"), _all_have_rows),
    **dict.fromkeys(("ArgMax", "ArgMin", "Split"), lambda node: node.works_along_inner_axis(0)),
    **dict.fromkeys(("LpNormalization", "TopK"), lambda node: node.works_along_inner_axis(-1)),
    **dict.fromkeys(
        ("Hardmax", "LogSoftmax", "Softmax"),
        lambda node: node.works_along_inner_axis(-1 if node.facts.opset >= 13 else 1),
    ),
    **dict.fromkeys(("Cast", "Identity"), lambda node: node.dim(0) is ROWS),
    "BatchNormalization": lambda node: (
        node.only_first_has_rows()
        and (node.rank(0) or 0) >= 2
        and not node.attribute("training_mode", 0)
        and len(node.node.output) == 1
    ),
    "ConstantOfShape": lambda node: _starts_with_rows(node.dim(0)),
    "CumSum": lambda node: (
        node.only_first_has_rows() and node.are_inner(node.numbers(1), node.rank(0))
    ),
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": lambda node: (
        node.dim(0) is ROWS and node.attribute("axis", 1) in (1, 1 - (node.rank(0) or 0))
    ),
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": lambda node: node.only_first_has_rows() and _inner_axes(node, 3),
    "Squeeze": lambda node: _inner_axes(node, 1),
    "Tile": lambda node: node.only_first_has_rows() and _starts_with_one(node.numbers(1)),
    "Transpose": lambda node: (
        node.dim(0) is ROWS
        and (node.attribute("perm")[0] == 0 if node.attribute("perm") else node.rank(0) == 1)
    ),
    "Trilu": lambda node: node.only_first_has_rows() and (node.rank(0) or 0) >= 3,
    "Unsqueeze": _unsqueeze,
}


# Size rules: how a list of sizes that contains the number of rows passes through a node, such as
# the target of a Reshape that is computed from Shape, Gather and Concat. None: not known.
def _same_or_sizes(sizes: Sizes) -> Dependence:
    return sizes if any(sizes) else SAME


def _shape(node: NodeView) -> Dependence | None:
    rank = node.rank(0)
    if node.dim(0) is not ROWS or rank is None:
        return None
    sizes = tuple(axis == 0 for axis in range(rank))
    return _same_or_sizes(sizes[node.attribute("start", 0) : node.attribute("end", rank)])


def _concat_sizes(node: NodeView) -> Dependence | None:
    sizes: list[bool] = []
    for place in range(len(node.node.input)):
        dim, shape = node.dim(place), node.shape(place)
        if shape is None or len(shape) != 1:
            return None
        if isinstance(dim, tuple):
            sizes.extend(dim)
        elif dim is SAME and shape[0] is not None:
            sizes.extend([False] * shape[0])
        else:
            return None
    return tuple(sizes)


def _gather_sizes(node: NodeView) -> Dependence | None:
    sizes, places, rank = node.dim(0), node.numbers(1), node.rank(1)
    if not isinstance(sizes, tuple) or places is None or rank is None or rank > 1:
        return None
    if not all(-len(sizes) <= place < len(sizes) for place in places):
        return None
    return _same_or_sizes(tuple(sizes[int(place)] for place in places))


def _slice_sizes(node: NodeView) -> Dependence | None:
    sizes = node.dim(0)
    starts, ends = node.attribute_or_input("starts", 1), node.attribute_or_input("ends", 2)
    steps = node.numbers(4) if node.name(4) else (1.0,)
    if not isinstance(sizes, tuple) or not starts or not ends or not steps:
        return None
    start, end, step = (int(numbers[0]) for numbers in (starts, ends, steps))
    return _same_or_sizes(sizes[start:end:step]) if step > 0 else None


_SIZE_RULES: Mapping[str, Callable[[NodeView], Dependence | None]] = {
    **dict.fromkeys(("Cast", "Identity", "Squeeze", "Unsqueeze"), lambda node: node.dim(0)),
    "Concat": _concat_sizes,
    "Gather": _gather_sizes,
    "Shape": _shape,
    "Slice": _slice_sizes,
}
