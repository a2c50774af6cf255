"""For each operator: whether it keeps the rows of axis 0 apart, and what comes out.

A rule sees a node of which some input depends on the rows. It says how the outputs do; None
where rows may mix, or where that isn't certain. Meanings follow the ONNX operator
specification, its older versions (from operator set 7 on) included.
"""

import math
from collections.abc import Callable, Mapping

from offload.bundle.rows.look import ROWS, SAME, Known, Look, Sizes, State

Rule = Callable[[Look], Known | None]

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


def _rows(holds: bool) -> State | None:
    return ROWS if holds else None


def _elementwise(look: Look) -> Known | None:
    return _rows(look.aligned() is not None)


def _passing(look: Look) -> Known | None:
    return look.state(0) if look.count == 1 else None


def _each_alone(look: Look) -> Known | None:
    """One output only: the indices that MaxPool can give count through all rows."""
    single = len([name for name in look.node.output if name]) == 1
    return _rows(look.only_first() and (look.rank(0) or 0) >= 3 and single)


def _batch_normalization(look: Look) -> Known | None:
    training = look.attribute("training_mode", 0) or len(look.node.output) > 1
    return _rows(look.only_first() and (look.rank(0) or 0) >= 2 and not training)


def _dropout(look: Look) -> Known | None:
    training = look.numbers(2) if look.name(2) else (0.0,)
    return _rows(look.only_first() and training is not None and not any(training))


def _along(default: int) -> Rule:
    """The first input is worked on along an axis; what else there is, is the same for all."""

    def rule(look: Look) -> Known | None:
        axis = look.attribute("axis", default)
        return _rows(look.only_first() and look.within((axis,), look.rank(0)))

    return rule


def _softmax(look: Look) -> Known | None:
    return _along(-1 if look.opset >= 13 else 1)(look)


def _normalization(look: Look) -> Known | None:
    rank = look.rank(0)
    apart = look.within((look.attribute("axis", -1),), rank)
    affine = (place for place in range(1, len(look.node.input)) if look.name(place))
    fits = rank is not None and all(look.beneath(place, rank) for place in affine)
    return _rows(look.only_first() and apart and fits)


def _quantize(look: Look) -> Known | None:
    scale = look.shape(1)
    if scale is None or len(scale) > 1 or not look.only_first():
        return None
    apart = look.within((look.attribute("axis", 1),), look.rank(0))
    return _rows(scale == () or scale == (1,) or apart)


def _reduce(look: Look) -> Known | None:
    axes = look.list("axes", 1)
    if not axes and ((look.name(1) and axes is None) or not look.only_first()):
        return None
    if not axes:
        return _rows(bool(look.attribute("noop_with_empty_axes", 0)))
    return _rows(look.only_first() and look.within(axes, look.rank(0)))


def _gemm(look: Look) -> Known | None:
    plain = look.state(0) is ROWS and not look.attribute("transA", 0)
    added = not look.name(2) or look.beneath(2, 2) or (look.state(2) is ROWS and look.rank(2) == 2)
    return _rows(plain and look.state(1) is SAME and added)


def _matmul(look: Look) -> Known | None:
    left, right = look.rank(0), look.rank(1)
    if left is None or right is None:
        return None
    match look.state(0), look.state(1):
        case State.ROWS, State.ROWS:
            return _rows(left == right >= 3)
        case State.ROWS, State.SAME:
            return _rows(right <= 2 == left or (left >= 3 and look.beneath(1, left)))
        case State.SAME, State.ROWS:
            return _rows(right >= 3 and look.beneath(0, right))
    return None


def _einsum(look: Look) -> Known | None:
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


def _flatten(look: Look) -> Known | None:
    axis, rank = look.attribute("axis", 1), look.rank(0)
    return _rows(look.state(0) is ROWS and (axis == 1 or (rank is not None and axis + rank == 1)))


def _reshape(look: Look) -> Known | None:
    if look.state(0) is not ROWS:
        return None
    target = look.state(1)
    if isinstance(target, tuple):
        return _rows(_leads(target))
    return _rows(_keeps(look, look.numbers(1)))


def _keeps(look: Look, target: tuple[float, ...] | None) -> bool:
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


def _expand(look: Look) -> Known | None:
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


def _filled(look: Look) -> Known | None:
    sizes = look.state(0)
    return _rows(isinstance(sizes, tuple) and _leads(sizes))


def _tile(look: Look) -> Known | None:
    repeats = look.numbers(1)
    return _rows(look.only_first() and bool(repeats) and repeats is not None and repeats[0] == 1)


def _transpose(look: Look) -> Known | None:
    order = look.attribute("perm")
    kept = order[0] == 0 if order else look.rank(0) == 1
    return _rows(look.state(0) is ROWS and kept)


def _squeeze(look: Look) -> Known | None:
    state = look.state(0)
    if isinstance(state, tuple):
        return state
    axes = look.list("axes", 1)
    return _rows(state is ROWS and bool(axes) and look.within(axes, look.rank(0)))


def _unsqueeze(look: Look) -> Known | None:
    state, axes, rank = look.state(0), look.list("axes", 1), look.rank(0)
    if isinstance(state, tuple):
        return state
    more = None if rank is None or axes is None else rank + len(axes)
    return _rows(state is ROWS and look.within(axes, more))


def _concat(look: Look) -> Known | None:
    places = range(len(look.node.input))
    if any(isinstance(look.state(place), tuple) for place in places):
        return _chained(look)
    apart = look.within((look.attribute("axis", 0),), look.rank(0))
    return _rows(apart and all(look.state(place) is ROWS for place in places))


def _chained(look: Look) -> Sizes | None:
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


def _shape(look: Look) -> Known | None:
    rank = look.rank(0)
    if look.state(0) is not ROWS or rank is None:
        return None
    sizes = tuple(axis == 0 for axis in range(rank))
    return _sizes(sizes[look.attribute("start", 0) : look.attribute("end", rank)])


def _sizes(sizes: Sizes) -> Known:
    return sizes if any(sizes) else SAME


def _gather(look: Look) -> Known | None:
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


def _gather_elements(look: Look) -> Known | None:
    both = look.state(0) is ROWS and look.state(1) is ROWS
    return _rows(both and look.within((look.attribute("axis", 0),), look.rank(0)))


def _slice(look: Look) -> Known | None:
    data, axes = look.state(0), look.list("axes", 3)
    if isinstance(data, tuple):
        return _sliced(look, data)
    return _rows(look.only_first() and bool(axes) and look.within(axes, look.rank(0)))


def _sliced(look: Look, data: Sizes) -> Known | None:
    starts, ends = look.list("starts", 1), look.list("ends", 2)
    steps = look.numbers(4) if look.name(4) else (1.0,)
    if not starts or not ends or not steps:
        return None
    start, end, step = (int(numbers[0]) for numbers in (starts, ends, steps))
    return _sizes(data[start:end:step]) if step > 0 else None


def _pad(look: Look) -> Known | None:
    pads, rank = look.list("pads", 1), look.rank(0)
    if not look.only_first() or rank is None:
        return None
    if look.name(3):
        return _rows(look.within(look.numbers(3), rank))
    return _rows(pads is not None and len(pads) == 2 * rank and pads[0] == pads[rank] == 0)


def _resize(look: Look) -> Known | None:
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


def _cumulative(look: Look) -> Known | None:
    return _rows(look.only_first() and look.within(look.numbers(1), look.rank(0)))


def _one_hot(look: Look) -> Known | None:
    rank = look.rank(0)
    more = None if rank is None else rank + 1
    return _rows(look.only_first() and look.within((look.attribute("axis", -1),), more))


def _triangle(look: Look) -> Known | None:
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
