"""Count the floating-point operations of a node from the shapes of its inputs and outputs."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from offload.graph.model import Graph
from offload.graph.value_index import attribute_value

Shape = tuple[int, ...]
Array = np.ndarray[Any, np.dtype[Any]]

# Operators that move or describe numbers and compute nothing.
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
# onnxruntime's own operators with a few operations per element.
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
# Heavy operators of ONNX itself without a rule below.
_NO_RULE = frozenset(("FlexAttention", "LinearAttention", "SequenceMap"))


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one or more nodes; a multiply-add counts two.

    Nodes in bodies and functions are counted one by one, those of loops once per step. Heavy nodes
    multiply matrices (products, convolutions, recurrent layers, attention, ...); all others are
    light.

    Attributes:
        heavy_flops: operations of the heavy nodes that could be counted.
        light_flops: operations of the light ones.
        heavy_nodes: number of nodes in `heavy_flops`.
        light_nodes: number of nodes in `light_flops`, without those that compute nothing.
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
        """The work of a body over several steps; uncounted if the number of steps is unknown.

        Uncounted nodes are then listed under the operator `loop`.
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
        whole model; if no node of its class was counted, as the average of all counted nodes.
        """
        nodes = total.heavy_nodes + total.light_nodes
        mean = total.flops / nodes if nodes else 0.0
        heavy_mean = total.heavy_flops / total.heavy_nodes if total.heavy_nodes else mean
        light_mean = total.light_flops / total.light_nodes if total.light_nodes else mean
        heavy, light = self.uncounted_heavy.total(), self.uncounted_light.total()
        return heavy * heavy_mean + light * light_mean


def uncounted_share(total: Work) -> float:
    """The share of a model's work that could not be counted, from 0 to 1.

    This is `Work.assumed` for the uncounted nodes, divided by all assumed and counted work; 1 if no
    node was counted.
    """
    if not total.uncounted:
        return 0.0
    assumed = total.assumed(total)
    return assumed / (assumed + total.flops) if assumed else 1.0


def shares_by_work(graph: Graph, parts: Mapping[int, float]) -> dict[int, float]:
    """The share of each of several layers in the time that they take together; sums to 1.

    Shares are by FLOPs (assumed FLOPs where a layer was not counted), or by output bytes if none of
    the layers has FLOPs.

    Args:
        graph: the layers.
        parts: for each layer, the fraction of it that counts, in 0..1.
    """
    work: dict[int, float] = {}
    output_bytes: dict[int, float] = {}
    for index in parts:
        layer = graph.layers[index]
        sizes = (graph.tensors[name].size_bytes or 0 for name in layer.outputs)
        output_bytes[index] = sum(sizes) or 1
        work[index] = layer.assumed_flops if layer.flops is None else layer.flops
    if not any(work.values()):
        work = output_bytes
    weights = {index: part * work[index] for index, part in parts.items()}
    total = sum(weights.values())
    return {index: weight / total for index, weight in weights.items()}


def node_work(
    node: NodeProto,
    shape: Callable[[str], Shape | None],
    numbers: Callable[[str], Array | None],
) -> Work:
    """The work of one node without bodies.

    Exact for matrix products, convolutions, recurrent layers and attention with known shapes. Other
    operators count one operation for each element of the output or of the first input, whichever
    has more (pooling: for each element of the window). Operators of other vendors without a rule
    are heavy and not counted.

    Args:
        node: the node.
        shape: sizes of a value by name; None when one isn't known.
        numbers: numbers of a small value by name; None when they aren't known.
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
    counted = (heavy or light or _elementwise)(_CountedNode(node, shape, numbers))
    if heavy:
        if counted is None:
            return Work(uncounted_heavy=Counter((name,)))
        return Work(heavy_flops=float(counted), heavy_nodes=1)
    if counted is None:
        return Work(uncounted_light=Counter((name,)))
    return Work(light_flops=float(counted), light_nodes=1)


@dataclass(frozen=True, slots=True)
class _CountedNode:
    """A node with the shapes and numbers of its inputs and outputs by position."""

    node: NodeProto
    shape: Callable[[str], Shape | None]
    numbers: Callable[[str], Array | None]

    def has(self, place: int) -> bool:
        return place < len(self.node.input) and bool(self.node.input[place])

    def input(self, place: int) -> Shape | None:
        return self.shape(self.node.input[place]) if self.has(place) else None

    def value(self, place: int) -> Array | None:
        return self.numbers(self.node.input[place]) if self.has(place) else None

    def output(self, place: int = 0) -> Shape | None:
        if place >= len(self.node.output) or not self.node.output[place]:
            return None
        return self.shape(self.node.output[place])

    def attribute(self, name: str, default: Any = None) -> Any:
        return attribute_value(self.node, name, default)

    def rows(self) -> int | None:
        """Size of the first axis of the first input; 1 for a single row."""
        shape = self.input(0)
        return None if shape is None else shape[0] if len(shape) > 1 else 1


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


def sum_known(counts: Iterable[float | None]) -> float | None:
    """The sum, None when a part isn't known."""
    total = 0.0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _conv(node: _CountedNode, shape: Shape | None, weights: int = 1) -> float | None:
    """Each element of a tensor of this shape takes part in one product with a kernel."""
    kernel = node.input(weights)
    return _product(2.0, shape, None if kernel is None else kernel[1:])


def _deform_conv(node: _CountedNode) -> float | None:
    """A convolution with interpolated samples: 8 operations per sample and channel."""
    kernel, offsets, x = node.input(1), node.input(2), node.input(0)
    if kernel is None or offsets is None or x is None:
        return None
    groups = max(int(node.attribute("offset_group", 1)), 1)
    samples = math.prod(offsets) // 2 // groups * x[1]
    return sum_known((_conv(node, node.output()), 8.0 * samples))


def _matmul(node: _CountedNode) -> float | None:
    first = node.input(0)
    if first is None:
        return None
    axis = -2 if node.attribute("transA", 0) and len(first) > 1 else -1
    return _product(2.0, node.output(), first[axis:][:1])


def _moe(node: _CountedNode) -> float | None:
    """Mixture of experts: each row passes `k` experts of two or three products."""
    packed = node.node.op_type == "QMoE"
    places = (2, 5, 8) if packed else (2, 4, 6)
    experts = [node.input(place) for place in places if node.has(place)]
    rows = node.input(0)
    if rows is None or None in experts:
        return None
    numbers = 8 // max(int(node.attribute("expert_weight_bits", 4)), 1) if packed else 1
    weights = sum(math.prod((shape or ())[1:]) for shape in experts) * numbers
    return 2.0 * math.prod(rows[:-1]) * int(node.attribute("k", 1)) * weights


def _einsum(node: _CountedNode) -> float | None:
    """Operands are multiplied in pairs from the left, as onnxruntime does."""
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
    output_letters = set(_letters(right, 0)) if right else set()
    total, product = 0.0, lettered[0]
    for place, term_letters in enumerate(lettered[1:], 1):
        both = product | term_letters
        total += 2.0 * math.prod(sizes.get(letter, 1) for letter in both)
        later = output_letters.union(*lettered[place + 1 :])
        product = {letter for letter in both if letter in later or letter.startswith(".")}
    return total


def _letters(term: str, rank: int) -> list[str]:
    """One name for each axis of a term; axes of an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    hidden = max(rank - len(before) - len(after), 0) if dots else 0
    return [*before, *(f".{place}" for place in range(hidden, 0, -1)), *after]


def _recurrent(node: _CountedNode) -> float | None:
    """Each step multiplies by the weights of input and state, in each direction."""
    x = node.input(0)
    weights = sum_known(_product(2.0, node.input(place)) for place in (1, 2))
    return None if x is None or weights is None else math.prod(x[:-1]) * weights


def _attention(node: _CountedNode) -> float | None:
    """Scores of all queries and keys, and the weighted sums of values."""
    query, key, past = node.input(0), node.input(1), node.input(4)
    if query is None or key is None or (node.has(4) and past is None):
        return None
    length = key[-2] + (past[-2] if past else 0)
    return _scores(query, node.output(), length)


def _scores(query: Shape | None, output: Shape | None, length: int) -> float | None:
    return sum_known((_product(2.0 * length, query), _product(2.0 * length, output)))


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
    """com.microsoft MultiHeadAttention: queries, keys and values separate or packed."""
    query, output, key = node.input(0), node.output(), node.input(1)
    past = node.input(6)
    if query is None or output is None or (node.has(1) and key is None):
        return None
    if node.has(6) and past is None:
        return None
    length = query[1] if key is None else key[2] if len(key) == 4 else key[1]
    return _scores(output, output, length + (past[2] if past else 0))


def _grouped_attention(node: _CountedNode) -> float | None:
    """com.microsoft GroupQueryAttention: the returned cache has the length of all keys."""
    output, cache, past, query = node.output(), node.output(1), node.input(3), node.input(0)
    if output is None or query is None:
        return None
    if cache is not None:
        length = cache[2]
    elif node.has(3) and past is None:
        return None
    else:
        length = query[1] + (past[2] if past else 0)
    return _scores(output, output, length)


def _fourier(node: _CountedNode) -> float | None:
    """A fast Fourier transform of n numbers takes 5 n log2 n operations."""
    output = node.output()
    if output is None:
        return None
    if node.node.op_type == "STFT":
        window, length = node.input(2), node.value(3)
        frame = window[0] if window else int(length.item()) if length is not None else None
        if frame is None:
            return None
        return 5.0 * math.prod(output[:2]) * frame * math.log2(max(frame, 2))
    points = max(math.prod(output[1:-1]), 2)
    return 5.0 * output[0] * points * math.log2(points)


def _trees(node: _CountedNode) -> float | None:
    """Each row passes every tree from root to leaf, with one comparison per node."""
    rows, ids = node.rows(), node.attribute("nodes_treeids", ())
    if rows is None:
        return None
    if not len(ids):  # TreeEnsemble of ai.onnx.ml 5 lists roots and splits
        roots = node.attribute("tree_roots", ())
        splits = len(node.attribute("nodes_featureids", ()))
        sizes = [splits / len(roots)] * len(roots) if len(roots) else []
    else:
        sizes = [float(count) for count in Counter(ids).values()]
    return rows * sum(math.log2(size + 1) for size in sizes)


def _linear(node: _CountedNode, attribute: str) -> float | None:
    """Each row is multiplied by coefficients or support vectors."""
    rows, numbers = node.rows(), node.attribute(attribute, ()) or node.attribute("coefficients", ())
    return None if rows is None else 2.0 * rows * len(numbers)


_HEAVY: Mapping[str, Count] = {
    **dict.fromkeys(
        (
            *("Conv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv"),
            "CausalConvWithState",
        ),
        lambda node: _conv(node, node.output()),
    ),
    "QLinearConv": lambda node: _conv(node, node.output(), weights=3),
    **dict.fromkeys(
        ("ConvTranspose", "ConvTransposeWithDynamicPads"), lambda node: _conv(node, node.input(0))
    ),
    "QLinearConvTranspose": lambda node: _conv(node, node.input(0), weights=3),
    "DeformConv": _deform_conv,
    **dict.fromkeys(
        (
            *("MatMul", "Gemm", "MatMulInteger", "MatMulInteger16", "QLinearMatMul", "QGemm"),
            *("FusedMatMul", "TransposeMatMul", "FusedGemm", "FusedMatMulActivation", "GemmFloat8"),
            *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "GemmFastGelu", "CDist"),
            "MatMulFpQ4",
        ),
        _matmul,
    ),
    # Weights of few bits: attribute N is the number of columns, the packed shape is not.
    **dict.fromkeys(
        ("MatMulNBits", "MatMulBnb4"),
        lambda node: _product(
            2.0, node.input(0), (int(node.attribute("N")),) if node.attribute("N") else None
        ),
    ),
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
    **dict.fromkeys(
        ("LinearRegressor", "LinearClassifier"), lambda node: _linear(node, "coefficients")
    ),
    **dict.fromkeys(
        ("SVMRegressor", "SVMClassifier"), lambda node: _linear(node, "support_vectors")
    ),
}
_LIGHT: Mapping[str, Count] = {
    # The output's size depends on data: these look at each element of the inputs once.
    **dict.fromkeys(
        ("NonZero", "NonMaxSuppression", "Compress", "Unique"),
        lambda node: sum_known(
            _product(1.0, node.input(place)) for place in range(2) if node.has(place)
        ),
    ),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "NhwcMaxPool"),
        lambda node: _product(1.0, node.output(), tuple(node.attribute("kernel_shape", ()))),
    ),
    # Each sample interpolates between four neighbours.
    **dict.fromkeys(
        ("RoiAlign", "MaxRoiPool"),
        lambda node: _product(
            8.0 * max(int(node.attribute("sampling_ratio", 1)), 1) ** 2, node.output()
        ),
    ),
}
