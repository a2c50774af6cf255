"""Arithmetic of an operator, counted from shapes."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from onnx import NodeProto, helper

from offload.graph.model import Graph

Shape = tuple[int, ...]
Array = np.ndarray[Any, np.dtype[Any]]

# Operators that move or describe numbers and compute none.
_FREE = frozenset(
    (
        *("Cast", "CastLike", "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape"),
        *("DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements"),
        *("GatherND", "Identity", "Optional", "OptionalGetElement", "OptionalHasElement", "Pad"),
        *("Reshape", "ReverseSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "Shape", "Size", "Slice"),
        *("SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("EmbedLayerNormalization", "ExpandDims", "GatherBlockQuantized", "QLinearConcat"),
        *("QEmbedLayerNormalization", "RemovePadding", "RestorePadding", "ZipMap"),
    )
)
_MICROSOFT = "com.microsoft"
# onnxruntime's own operators that do a few operations an element.
_ELEMENTWISE = frozenset(
    (
        *("BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "BitmaskDropout"),
        *("BranchwiseRMSNorm", "ComplexMul", "ComplexMulConj", "DequantizeLinear", "FastGelu"),
        *("GatedAdd", "GatedRMSNorm", "Gelu", "GemmaRotaryEmbedding", "GridSample", "GroupNorm"),
        *("MRotaryEmbedding", "MulInteger", "QLinearAdd", "QLinearGlobalAveragePool"),
        *("QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid"),
        *("QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "Range"),
        *("ReduceSumInteger", "RelativePositionBias", "RMSNormRotary", "RotaryEmbedding"),
        *("ScaledSiLU", "SkipGroupNorm", "SkipLayerNormalization", "SwiGLU", "Trilu"),
        *("SkipSimplifiedLayerNormalization", "TorchEmbedding"),
    )
)
# Operators of ONNX itself that are heavy, and that no rule is known for.
_NO_RULE = frozenset(("FlexAttention", "LinearAttention", "SequenceMap"))


class Operands(Protocol):
    """What counting needs to know of an operator's inputs and outputs."""

    def shape(self, name: str) -> Shape | None:
        """Sizes of a value; None when one isn't known."""

    def numbers(self, name: str) -> Array | None:
        """Numbers of a small value; None when they aren't known."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one or more nodes; a multiply-add counts two.

    Nodes inside of bodies and functions are counted one by one, those of loops once a step. Heavy
    nodes multiply matrices (products, convolutions, recurrent layers, attention, ...); all others
    are light.

    Attributes:
        heavy_flops: operations of the heavy nodes that could be counted.
        light_flops: operations of the light ones.
        heavy_nodes: number of nodes behind `heavy_flops`.
        light_nodes: number of nodes behind `light_flops`; those that compute nothing aside.
        uncounted_heavy: number of heavy nodes that could not be counted, by operator.
        uncounted_light: number of light nodes that could not be counted, by operator.
    """

    heavy_flops: float = 0.0
    light_flops: float = 0.0
    heavy_nodes: int = 0
    light_nodes: int = 0
    uncounted_heavy: Counter[str] = field(default_factory=Counter)
    uncounted_light: Counter[str] = field(default_factory=Counter)

    @property
    def flops(self) -> float:
        """Operations that were counted."""
        return self.heavy_flops + self.light_flops

    @property
    def uncounted(self) -> Counter[str]:
        """Number of nodes that could not be counted, by operator."""
        return self.uncounted_heavy + self.uncounted_light

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.heavy_flops + other.heavy_flops,
            self.light_flops + other.light_flops,
            self.heavy_nodes + other.heavy_nodes,
            self.light_nodes + other.light_nodes,
            self.uncounted_heavy + other.uncounted_heavy,
            self.uncounted_light + other.uncounted_light,
        )

    def repeated(self, steps: int | None, loop: str) -> "Work":
        """The work of a body over several steps; all of it uncounted where they aren't known.

        `loop` is the operator that such nodes are then listed under.
        """
        if steps is None:
            heavy = Counter({loop: self.heavy_nodes}) + self.uncounted_heavy
            light = Counter({loop: self.light_nodes}) + self.uncounted_light
            return Work(uncounted_heavy=heavy, uncounted_light=light)
        return Work(
            self.heavy_flops * steps,
            self.light_flops * steps,
            self.heavy_nodes * steps,
            self.light_nodes * steps,
            Counter({op: n * steps for op, n in self.uncounted_heavy.items() if steps}),
            Counter({op: n * steps for op, n in self.uncounted_light.items() if steps}),
        )

    def assumed(self, total: "Work") -> float:
        """Operations assumed for the nodes that were not counted.

        Each counts as the average node of its class, heavy or light, in `total`, the work of the
        whole model; where none of the class was counted, as the average of all that were.
        """
        nodes = total.heavy_nodes + total.light_nodes
        mean = total.flops / nodes if nodes else 0.0
        heavy_mean = total.heavy_flops / total.heavy_nodes if total.heavy_nodes else mean
        light_mean = total.light_flops / total.light_nodes if total.light_nodes else mean
        heavy, light = self.uncounted_heavy.total(), self.uncounted_light.total()
        return heavy * heavy_mean + light * light_mean


def uncounted_share(total: Work) -> float:
    """The share of a model's work that could not be counted, from 0 to 1.

    It is what `Work.assumed` charges for the nodes that were not counted, over that and what was
    counted; 1 when there was nothing to take an average of.
    """
    if not total.uncounted:
        return 0.0
    assumed = total.assumed(total)
    return assumed / (assumed + total.flops) if assumed else 1.0


def shares_by_work(graph: Graph, parts: Mapping[int, float]) -> dict[int, float]:
    """What each of several layers contributes to the time that they take together; sums to 1.

    By FLOPs, those assumed for a layer that was not counted included; by the bytes that a layer
    makes where none of the layers computes anything.

    Args:
        graph: the layers.
        parts: by index of a layer, how much of it counts, in 0..1.
    """
    work: dict[int, float] = {}
    made_bytes: dict[int, float] = {}
    for index in parts:
        layer = graph.layers[index]
        made_bytes[index] = sum(graph.tensors[name].size_bytes or 0 for name in layer.outputs) or 1
        work[index] = layer.assumed_flops if layer.flops is None else layer.flops
    if not any(work.values()):
        work = made_bytes
    weights = {index: part * work[index] for index, part in parts.items()}
    total = sum(weights.values())
    return {index: weight / total for index, weight in weights.items()}


def node_work(node: NodeProto, operands: Operands) -> Work:
    """The work of one node without bodies.

    Exact for products of matrices, convolutions, recurrent layers and attention with known
    shapes; for others one operation for each element of the output or of the first input,
    whichever has more (pooling: for each element of the window). Operators of other vendors that
    no rule is known for are heavy and not counted.
    """
    name, standard = node.op_type, node.domain in ("", "ai.onnx", "ai.onnx.ml")
    if name in _FREE and (standard or node.domain == _MICROSOFT):
        return Work()
    if standard or node.domain == _MICROSOFT:
        heavy = _HEAVY.get(name)
        light = _LIGHT.get(name, _elementwise if standard or name in _ELEMENTWISE else None)
    else:
        heavy = light = None
    if name in _NO_RULE or not (heavy or light):
        return Work(uncounted_heavy=Counter((name,)))
    counted = (heavy or light or _elementwise)(_CountedNode(node, operands))
    if heavy:
        if counted is None:
            return Work(uncounted_heavy=Counter((name,)))
        return Work(heavy_flops=float(counted), heavy_nodes=1)
    if counted is None:
        return Work(uncounted_light=Counter((name,)))
    return Work(light_flops=float(counted), light_nodes=1)


@dataclass(frozen=True, slots=True)
class _CountedNode:
    """A node with the shapes of its inputs and outputs by place."""

    node: NodeProto
    operands: Operands

    def has(self, place: int) -> bool:
        return place < len(self.node.input) and bool(self.node.input[place])

    def input(self, place: int) -> Shape | None:
        return self.operands.shape(self.node.input[place]) if self.has(place) else None

    def value(self, place: int) -> Array | None:
        return self.operands.numbers(self.node.input[place]) if self.has(place) else None

    def output(self, place: int = 0) -> Shape | None:
        if place >= len(self.node.output) or not self.node.output[place]:
            return None
        return self.operands.shape(self.node.output[place])

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default


Count = Callable[[_CountedNode], float | None]


def _product(factor: float, *shapes: Sequence[int] | None) -> float | None:
    total = factor
    for sizes in shapes:
        if sizes is None:
            return None
        total *= math.prod(sizes)
    return total


def _elementwise(node: _CountedNode) -> float | None:
    shapes = [node.output()] + ([node.input(0)] if node.has(0) else [])
    return None if None in shapes else max(math.prod(sizes or ()) for sizes in shapes)


def _inputs_only(node: _CountedNode) -> float | None:
    """Operators whose output's size depends on data: they look at every element once."""
    return sum_known(_product(1.0, node.input(place)) for place in range(2) if node.has(place))


def sum_known(counts: Iterable[float | None]) -> float | None:
    """The sum, None when a part isn't known."""
    total = 0.0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _pool(node: _CountedNode) -> float | None:
    return _product(1.0, node.output(), tuple(node.attribute("kernel_shape", ())))


def _sampled(node: _CountedNode) -> float | None:
    """RoiAlign and its like: four neighbours are weighed for each sample."""
    ratio = max(int(node.attribute("sampling_ratio", 1)), 1)
    return _product(8.0 * ratio * ratio, node.output())


def _conv(weights: int) -> Count:
    """Every element of the output is a product with one kernel."""

    def count(node: _CountedNode) -> float | None:
        kernel = node.input(weights)
        return _product(2.0, node.output(), None if kernel is None else kernel[1:])

    return count


def _conv_transpose(weights: int) -> Count:
    """Every element of the input is multiplied with one kernel."""

    def count(node: _CountedNode) -> float | None:
        kernel = node.input(weights)
        return _product(2.0, node.input(0), None if kernel is None else kernel[1:])

    return count


def _deform_conv(node: _CountedNode) -> float | None:
    """A convolution whose samples are interpolated: 8 operations a sample of each channel."""
    kernel, offsets, x = node.input(1), node.input(2), node.input(0)
    if kernel is None or offsets is None or x is None:
        return None
    groups = max(int(node.attribute("offset_group", 1)), 1)
    samples = math.prod(offsets) // 2 // groups * x[1]
    return sum_known((_conv(1)(node), 8.0 * samples))


def _matmul(node: _CountedNode) -> float | None:
    first = node.input(0)
    if first is None:
        return None
    axis = -2 if node.attribute("transA", 0) and len(first) > 1 else -1
    return _product(2.0, node.output(), first[axis:][:1])


def _packed_matmul(node: _CountedNode) -> float | None:
    """Weights of few bits: their packed shape does not tell, the attribute N does."""
    wide = node.attribute("N")
    return _product(2.0, node.input(0), None if wide is None else (int(wide),))


def _moe(node: _CountedNode) -> float | None:
    """Mixture of experts: each row goes through `k` experts of two or three products."""
    packed = node.node.op_type == "QMoE"
    places = (2, 5, 8) if packed else (2, 4, 6)
    experts = [node.input(place) for place in places if node.has(place)]
    rows = node.input(0)
    if rows is None or None in experts:
        return None
    numbers = 8 // max(int(node.attribute("expert_weight_bits", 4)), 1) if packed else 1
    each = sum(math.prod((shape or ())[1:]) for shape in experts) * numbers
    return 2.0 * math.prod(rows[:-1]) * int(node.attribute("k", 1)) * each


def _einsum(node: _CountedNode) -> float | None:
    """Operands are multiplied two by two from the left, as onnxruntime does."""
    equation = node.attribute("equation", b"")
    text = equation.decode() if isinstance(equation, bytes) else equation
    left, _, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    shapes = [node.input(place) for place in range(len(node.node.input))]
    if len(terms) != len(shapes) or None in shapes:
        return None
    sizes: dict[str, int] = {}
    lettered: list[set[str]] = []
    for term, shape in zip(terms, shapes, strict=True):
        letters = _letters(term, len(shape or ()))
        lettered.append(set(letters))
        for letter, size in zip(letters, shape or (), strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if len(lettered) == 1:
        return float(math.prod(sizes.values()))
    wanted = set(_letters(right, 0)) if right else set()
    total, made = 0.0, lettered[0]
    for place, term_letters in enumerate(lettered[1:], 1):
        both = made | term_letters
        total += 2.0 * math.prod(sizes.get(letter, 1) for letter in both)
        later = wanted.union(*lettered[place + 1 :])
        made = {letter for letter in both if letter in later or letter.startswith(".")}
    return total


def _letters(term: str, rank: int) -> list[str]:
    """One name for each axis of a term; those of an ellipsis are counted from the right."""
    before, dots, after = term.partition("...")
    hidden = max(rank - len(before) - len(after), 0) if dots else 0
    return [*before, *(f".{place}" for place in range(hidden, 0, -1)), *after]


def _recurrent(node: _CountedNode) -> float | None:
    """Each step multiplies with the input's and with the state's weights, in each direction."""
    x = node.input(0)
    weights = sum_known(_product(2.0, node.input(place)) for place in (1, 2))
    return None if x is None or weights is None else math.prod(x[:-1]) * weights


def _attention(node: _CountedNode) -> float | None:
    """Scores of all queries and keys, and the sums of values that they weigh."""
    query, key, past = node.input(0), node.input(1), node.input(4)
    if query is None or key is None or (node.has(4) and past is None):
        return None
    length = key[-2] + (past[-2] if past else 0)
    return _scores(query, node.output(), length)


def _scores(query: Shape | None, answer: Shape | None, length: int) -> float | None:
    return sum_known((_product(2.0 * length, query), _product(2.0 * length, answer)))


def _fused_attention(node: _CountedNode) -> float | None:
    """com.microsoft Attention: the projection to queries, keys and values, then attention."""
    x, weights, past = node.input(0), node.input(1), None
    quantised = node.node.op_type == "QAttention"
    place = 8 if quantised else 4
    if node.has(place) and (past := node.input(place)) is None:
        return None
    if x is None or weights is None:
        return None
    length = x[1] + (past[-2] if past else 0)
    projection = 2.0 * math.prod(x[:2]) * math.prod(weights)
    return sum_known((projection, _scores(node.output(), node.output(), length)))


def _multi_head_attention(node: _CountedNode) -> float | None:
    """com.microsoft MultiHeadAttention: separate, or queries, keys and values packed in one."""
    query, answer, key = node.input(0), node.output(), node.input(1)
    past = node.input(6)
    if query is None or answer is None or (node.has(1) and key is None):
        return None
    if node.has(6) and past is None:
        return None
    length = query[1] if key is None else key[2] if len(key) == 4 else key[1]
    return _scores(answer, answer, length + (past[2] if past else 0))


def _grouped_attention(node: _CountedNode) -> float | None:
    """com.microsoft GroupQueryAttention: the cache that comes out is as long as all keys."""
    answer, cache, past, query = node.output(), node.output(1), node.input(3), node.input(0)
    if answer is None or query is None:
        return None
    if cache is not None:
        length = cache[2]
    elif node.has(3) and past is None:
        return None
    else:
        length = query[1] + (past[2] if past else 0)
    return _scores(answer, answer, length)


def _fourier(node: _CountedNode) -> float | None:
    """A fast Fourier transform of n numbers takes 5 n log2 n operations."""
    answer = node.output()
    if answer is None:
        return None
    if node.node.op_type == "STFT":
        window, given = node.input(2), node.value(3)
        frame = window[0] if window else int(given.item()) if given is not None else None
        if frame is None:
            return None
        return 5.0 * math.prod(answer[:2]) * frame * math.log2(max(frame, 2))
    length = max(math.prod(answer[1:-1]), 2)
    return 5.0 * answer[0] * length * math.log2(length)


def _trees(node: _CountedNode) -> float | None:
    """Each row walks down every tree: a comparison at each node on its way."""
    rows = node.input(0)
    ids = node.attribute("nodes_treeids", ())
    if rows is None:
        return None
    if not len(ids):  # TreeEnsemble of ai.onnx.ml 5 lists roots and splits
        roots = node.attribute("tree_roots", ())
        splits = len(node.attribute("nodes_featureids", ()))
        sizes = [splits / len(roots)] * len(roots) if len(roots) else []
    else:
        sizes = [float(count) for count in Counter(ids).values()]
    samples = rows[0] if len(rows) > 1 else 1
    return samples * sum(math.log2(size + 1) for size in sizes)


def _linear(node: _CountedNode) -> float | None:
    rows, weights = node.input(0), node.attribute("coefficients", ())
    return None if rows is None else 2.0 * (rows[0] if len(rows) > 1 else 1) * len(weights)


def _support_vectors(node: _CountedNode) -> float | None:
    rows = node.input(0)
    numbers = node.attribute("support_vectors", ()) or node.attribute("coefficients", ())
    return None if rows is None else 2.0 * (rows[0] if len(rows) > 1 else 1) * len(numbers)


_HEAVY: Mapping[str, Count] = {
    **dict.fromkeys(
        ("Conv", "ConvInteger", "FusedConv", "NhwcConv", "CausalConvWithState"), _conv(1)
    ),
    "NhwcFusedConv": _conv(1),
    "QLinearConv": _conv(3),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _conv_transpose(1)),
    "QLinearConvTranspose": _conv_transpose(3),
    "DeformConv": _deform_conv,
    **dict.fromkeys(
        (
            *("MatMul", "Gemm", "MatMulInteger", "MatMulInteger16", "QLinearMatMul", "QGemm"),
            *("FusedMatMul", "TransposeMatMul", "FusedGemm", "FusedMatMulActivation", "GemmFloat8"),
            *(
                "DynamicQuantizeMatMul",
                "MatMulIntegerToFloat",
                "GemmFastGelu",
                "CDist",
                "MatMulFpQ4",
            ),
        ),
        _matmul,
    ),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _packed_matmul),
    **dict.fromkeys(("MoE", "QMoE"), _moe),
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    "Attention": lambda node: (
        _fused_attention(node) if node.node.domain == "com.microsoft" else _attention(node)
    ),
    "QAttention": _fused_attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_attention,
    **dict.fromkeys(("DFT", "STFT"), _fourier),
    **dict.fromkeys(("TreeEnsemble", "TreeEnsembleRegressor", "TreeEnsembleClassifier"), _trees),
    **dict.fromkeys(("LinearRegressor", "LinearClassifier"), _linear),
    **dict.fromkeys(("SVMRegressor", "SVMClassifier"), _support_vectors),
}
_LIGHT: Mapping[str, Count] = {
    **dict.fromkeys(("NonZero", "NonMaxSuppression", "Compress", "Unique"), _inputs_only),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "NhwcMaxPool"), _pool
    ),
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), _sampled),
}
