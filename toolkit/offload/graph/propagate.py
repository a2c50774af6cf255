"""Carry sizes and small numbers through a graph, node by node, and count its work.

ONNX's own inference follows types, but loses numbers that a graph computes for its shapes (the
pads of a "same" convolution, positions from a length, targets of a Reshape). Here small values
are evaluated by ONNX's reference implementation wherever all that they depend on is known, and
handed to the inference of the next node. Bodies of If, Loop and Scan and model-local functions
are followed with what is known of their inputs. Weights are never read. Linear in the nodes that
are visited.
"""

from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
)

from offload.graph.flops import Array, Shape, Work, node_work
from offload.graph.onnx_file import is_external
from offload.graph.value_index import FunctionKey, bodies, function_key

# Larger values aren't evaluated: shapes, pads and lengths are small.
_MOST_ELEMENTS = 1024
# Nodes in bodies and functions that are visited at most, counted each time they are called.
_MOST_INNER_NODES = 200_000
# Calls of functions in functions that are followed at most.
_MOST_CALLS = 50
# Steps of a loop that are followed at most to find how many there are.
_MOST_STEPS = 4096
_NUMBER = helper.make_tensor_type_proto(TensorProto.INT64, [])
# Inputs whose numbers decide the sizes of an operator's outputs, by place.
_SHAPING: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "TopK", "OneHot", "Unsqueeze", "Squeeze"), (1,)),
    **dict.fromkeys(("Split", "SplitToSequence", "SequenceAt"), (1,)),
    **dict.fromkeys(("CenterCropPad", "AffineGrid", "Upsample", "ExpandDims"), (1,)),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        (1,),
    ),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), (0,)),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Tile": (1, 2),
    "Resize": (1, 2, 3),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MelWeightMatrix": (0, 1),
    "Col2Im": (1, 2),
    "MaxUnpool": (2,),
    "CropAndResize": (3,),
    "GroupQueryAttention": (6,),
}
# Operators whose outputs' sizes depend on the numbers in their inputs.
_DATA_SIZED = frozenset(
    (
        *("NonZero", "NonMaxSuppression", "Unique", "Compress", "StringSplit", "ImageDecoder"),
        *("Tokenizer", "RemovePadding", "BeamSearch", "GreedySearch", "Sampling"),
        *("WhisperBeamSearch",),
    )
)
# Operators whose output may be far larger than their inputs: evaluated if its size is known.
_GROWING = frozenset(
    (
        *("ConstantOfShape", "Range", "Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot"),
        *("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "CenterCropPad"),
    )
)
_STANDARD = ("", "ai.onnx")
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")

# What ONNX's reference implementation raises on values that an operator doesn't take.
_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    *(ValueError, OSError),
)
_INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


@dataclass(slots=True)
class KnownValue:
    """What is known of one value.

    Attributes:
        type: its type, sizes that are not known left open; None: unknown.
        sized: whether its sizes follow from the sizes of the model's inputs, known or not.
        constant: whether its numbers do.
        maker: the node that makes it, or the tensor that is stored; None: it comes from outside.
        place: which of the node's outputs it is.
        inputs: what the node reads; None for an input that is left out.
        opset: version of ONNX's own operators where the node is.
        numbers: its numbers where they are known, `None` also while they weren't asked for.
        settled: whether `numbers` is final.
    """

    type: TypeProto | None
    sized: bool = True
    constant: bool = False
    maker: NodeProto | TensorProto | None = None
    place: int = 0
    inputs: "tuple[KnownValue | None, ...]" = ()
    opset: int = 1
    numbers: Array | None = None
    settled: bool = False

    @property
    def shape(self) -> Shape | None:
        """Sizes of a tensor; None when one isn't known."""
        return None if self.type is None else sizes_of(self.type)

    @property
    def is_small(self) -> bool:
        """Whether its size is known and it has few elements."""
        shape = self.shape
        return shape is not None and prod(shape) <= _MOST_ELEMENTS


def stored_value(tensor: TensorProto) -> KnownValue:
    """The value of a stored tensor."""
    typed = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return KnownValue(typed, constant=True, maker=tensor)


# Numbers

Memo: TypeAlias = dict[int, Array | None]


def numbers_of(value: KnownValue, memo: Memo | None = None) -> Array | None:
    """Numbers of a small constant value; None where they can't be known.

    Each value is evaluated once, what it needs before it, without recursion.

    Args:
        value: what is asked for.
        memo: numbers by the id of a value, to evaluate for one step of a loop; what is found goes
            there. None: what is found stays with the values.
    """
    pending = [value]
    while pending:
        top = pending[-1]
        needed = [] if _is_settled(top, memo) else _needed(top, memo)
        if needed:
            pending.extend(needed)
            continue
        pending.pop()
        if not _is_settled(top, memo):
            found = None if needed is None else _evaluated(top, memo)
            if memo is not None:
                memo[id(top)] = found
            else:
                top.numbers, top.settled = found, True
    return _settled(value, memo)


def _is_settled(value: KnownValue, memo: Memo | None) -> bool:
    if memo is None:
        return value.settled
    return id(value) in memo or value.numbers is not None


def _settled(value: KnownValue, memo: Memo | None) -> Array | None:
    return value.numbers if memo is None else memo.get(id(value), value.numbers)


def _needed(value: KnownValue, memo: Memo | None) -> list[KnownValue] | None:
    """Inputs to evaluate first; None where the value can't be evaluated."""
    node = value.maker
    if not value.constant or node is None:
        return None
    if not isinstance(node, NodeProto) or _measures(node):
        return []
    given = [each for each in value.inputs if each is not None]
    if not all(each.is_small or each.shape is None for each in given):
        return None
    if any(_is_settled(each, memo) and _settled(each, memo) is None for each in given):
        return None
    return [each for each in given if not _is_settled(each, memo)]


def _evaluated(value: KnownValue, memo: Memo | None) -> Array | None:
    """Numbers of a value whose inputs are settled."""
    node = value.maker
    if isinstance(node, TensorProto):
        if is_external(node) or node.data_type == TensorProto.STRING or not value.is_small:
            return None
        return numpy_helper.to_array(node)
    assert isinstance(node, NodeProto)
    if _measures(node):
        return _measured(node, value.inputs[0])
    too_large = value.shape is not None and not value.is_small
    if too_large or (value.shape is None and node.op_type in _GROWING):
        return None
    arrays = {}
    for name, each in zip(node.input, value.inputs, strict=True):
        if each is not None:
            numbers = _settled(each, memo)
            if numbers is None:
                return None
            arrays[name] = numbers
    return _run(node, arrays, value.opset, value.place)


def _measures(node: NodeProto) -> bool:
    return node.op_type in ("Shape", "Size") and node.domain in _STANDARD


def _measured(node: NodeProto, value: KnownValue | None) -> Array | None:
    shape = None if value is None else value.shape
    if shape is None:
        return None
    if node.op_type == "Size":
        return np.array(prod(shape), np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)


def _run(node: NodeProto, arrays: Mapping[str, Array], opset: int, place: int) -> Array | None:
    """One output of a node by ONNX's reference implementation; None where it has none."""
    from onnx.reference import ReferenceEvaluator  # it imports every operator

    if node.domain not in _STANDARD or any(True for _ in bodies(node)):
        return None
    name = node.output[place]
    graph = GraphProto(node=[node])
    graph.input.extend(onnx.ValueInfoProto(name=each) for each in arrays)
    graph.output.append(onnx.ValueInfoProto(name=name))
    try:
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(graph, {"": opset}).run([name], dict(arrays))
    except _REFUSALS:
        return None
    array = np.asarray(found) if isinstance(found, np.ndarray | np.generic) else None
    return array if array is not None and array.size <= _MOST_ELEMENTS else None


# Nodes, bodies, functions


@dataclass
class _ModelScope:
    """What the scopes of one model share."""

    functions: Mapping[FunctionKey, FunctionProto]
    ir_version: int
    visited: int = 0
    calls: list[FunctionKey] = field(default_factory=list)


Visited: TypeAlias = tuple[list[KnownValue], Work]


@dataclass(frozen=True)
class Scope:
    """The values that the nodes of a graph, a body or a function see, by name.

    Attributes:
        values: those made or given here; a body's also those of the graphs around it.
        opsets: versions of operators by domain.
        shared: what all scopes of the model share.
        attributes: of the call of the function that the nodes are in.
    """

    values: ChainMap[str, KnownValue]
    opsets: Mapping[str, int]
    shared: _ModelScope
    attributes: Mapping[str, AttributeProto] | None = None

    @classmethod
    def main(
        cls, functions: Iterable[FunctionProto], opsets: Mapping[str, int], ir_version: int
    ) -> "Scope":
        """A scope for a model's main graph, without values yet."""
        known = {function_key(function): function for function in functions}
        return cls(ChainMap(), _plain(opsets.items()), _ModelScope(known, ir_version))

    def shape(self, name: str) -> Shape | None:
        """Sizes of a tensor; None when one isn't known."""
        value = self.values.get(name)
        return None if value is None else value.shape

    def numbers(self, name: str) -> Array | None:
        """Numbers of a small value; None when they aren't known."""
        value = self.values.get(name)
        return None if value is None else numbers_of(value)

    def type(self, name: str) -> TypeProto | None:
        """A value's type as far as it is known."""
        value = self.values.get(name)
        return None if value is None else value.type

    def visit(
        self,
        nodes: Iterable[NodeProto],
        known: Callable[[str], TypeProto | None] = lambda _: None,
    ) -> list[Work]:
        """Work out the outputs of nodes, and count the work of each.

        Args:
            nodes: in topological order.
            known: types that are known already, by value name.
        """
        return [self._visit(self._resolved(node), known) for node in nodes]

    def _visit(self, node: NodeProto, known: Callable[[str], TypeProto | None]) -> Work:
        types = [known(name) if name else None for name in node.output]
        function = self.shared.functions.get(function_key(node))
        if function:
            found, work = self._call(node, function)
        elif node.domain in _STANDARD and node.op_type in ("If", "Loop", "Scan"):
            found, work = self._bodied(node, types)
        else:
            found, work = self._leaf(node, types), None
        for name, typed, value in zip_longest(node.output, types, found):
            if name:
                made = value or KnownValue(None, sized=False)
                better = typed is not None and typed != made.type
                self.values[name] = (
                    replace(made, type=completed(typed, made.type)) if better else made
                )
        if all(self.value(name).constant for name in node.output if name):
            return Work()  # arithmetic of sizes: nothing to count
        return node_work(node, self) if work is None else work

    def _bodied(self, node: NodeProto, types: Sequence[TypeProto | None]) -> Visited:
        body = next(bodies(node), GraphProto())
        if node.op_type == "If":
            return self._if(node)
        return (self._loop if node.op_type == "Loop" else self._scan)(node, body, types)

    def _leaf(self, node: NodeProto, types: Sequence[TypeProto | None]) -> list[KnownValue]:
        """The outputs of a node without bodies."""
        inputs = tuple(self.values.get(name) for name in node.input)
        given = [value for value in inputs if value is not None]
        deciding = (place for place in _SHAPING.get(node.op_type, ()) if place < len(inputs))
        constant = all(value.constant for value in given) and not _is_random(node)
        sized = constant or (
            node.op_type not in _DATA_SIZED
            and all(value.sized for value in given)
            and all(value.constant for p in deciding if (value := inputs[p]) is not None)
        )
        if _measures(node):
            constant = sized
        inferred: Mapping[str, TypeProto] = {}
        if not all(is_known(typed) for name, typed in zip(node.output, types, strict=True) if name):
            inferred = self._infer(node)
        opset = self.opsets.get("", 1)
        made = []
        for place, (name, typed) in enumerate(zip(node.output, types, strict=True)):
            best = completed(typed, inferred.get(name))
            value = KnownValue(best, sized, constant, node, place, inputs, opset)
            if constant and not is_known(best) and (numbers := numbers_of(value)) is not None:
                value.type = _type_of(numbers)
            made.append(value)
        return made

    def _infer(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Types of a node's outputs by ONNX's inference, with numbers that decide on sizes."""
        domain = "" if node.domain in _STANDARD else node.domain
        schema = _schema(node.op_type, self.opsets.get(domain, 1), domain)
        if schema is None:
            return {}
        types = {name: self.type(name) or TypeProto() for name in node.input if name}
        numbers = {}
        for place in _SHAPING.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if (found := self.numbers(name)) is not None:
                numbers[name] = numpy_helper.from_array(found, name)
        try:
            return onnx.shape_inference.infer_node_outputs(
                schema, node, types, numbers, ir_version=self.shared.ir_version
            )
        except _INFERENCE_ERRORS:
            return {}  # what it can't follow stays unknown

    def _resolved(self, node: NodeProto) -> NodeProto:
        """The node with a function's attributes filled in, and inputs the call left out empty."""
        if self.attributes is None:
            return node
        resolved = NodeProto()
        resolved.CopyFrom(node)
        resolved.ClearField("attribute")
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                resolved.attribute.append(attribute)
            elif attribute.ref_attr_name in self.attributes:
                copied = resolved.attribute.add()
                copied.CopyFrom(self.attributes[attribute.ref_attr_name])
                copied.name = attribute.name
        for place, name in enumerate(node.input):
            if name and name not in self.values:
                resolved.input[place] = ""
        return resolved

    def work_of(self, nodes: Sequence[NodeProto]) -> Work:
        """Visit the nodes of a body or function, and sum up their work."""
        self.shared.visited += len(nodes)
        if self.shared.visited > _MOST_INNER_NODES:
            return Work(uncounted_heavy=Counter(node.op_type for node in nodes))
        return sum(self.visit(nodes), Work())

    def _call(self, node: NodeProto, function: FunctionProto) -> Visited:
        """A call of a model-local function, which sees nothing but its inputs."""
        key, calls = function_key(function), self.shared.calls
        if key in calls or len(calls) >= _MOST_CALLS:  # a function that calls itself has no end
            return [], Work(uncounted_heavy=Counter((node.op_type,)))
        attributes = {each.name: each for each in (*function.attribute_proto, *node.attribute)}
        opsets = _plain((each.domain, each.version) for each in function.opset_import)
        actual = (self.values.get(name) for name in node.input)
        values = {n: v for n, v in zip(function.input, actual, strict=False) if v is not None}
        inner = Scope(ChainMap(values), opsets, self.shared, attributes)
        calls.append(key)
        work = inner.work_of(function.node)
        calls.pop()
        return [inner.value(name) for name in function.output], work

    def value(self, name: str) -> KnownValue:
        """What is known of a value; of one that nothing makes, nothing is."""
        return self.values.get(name) or KnownValue(None, sized=False)

    def _body(self, body: GraphProto, values: Mapping[str, KnownValue]) -> Visited:
        """Visit a body, which sees the values here; gives its outputs and its work."""
        inner = replace(self, values=self.values.new_child(dict(values)))
        for tensor in body.initializer:
            inner.values[tensor.name] = stored_value(tensor)
        for sparse in body.sparse_initializer:
            typed = helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
            inner.values[sparse.values.name] = KnownValue(typed)
        work = inner.work_of(body.node)
        return [inner.value(output.name) for output in body.output], work

    def _if(self, node: NodeProto) -> Visited:
        """The branch that is taken where that is known; else what both agree on."""
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        branches = [graphs[name] for name in ("then_branch", "else_branch") if name in graphs]
        condition = self.numbers(node.input[0])
        if condition is not None and condition.size == 1 and len(branches) == 2:
            return self._body(branches[0 if condition.item() else 1], {})
        visited = [self._body(branch, {}) for branch in branches]
        decided = self.value(node.input[0]).constant
        found = []
        for values in zip(*(outputs for outputs, _ in visited), strict=False):
            sized = decided and all(value.sized for value in values)
            found.append(KnownValue(merged_value([value.type for value in values]), sized))
        works = [work for _, work in visited]
        return found, max(works, key=lambda w: (w.uncounted.total(), w.flops), default=Work())

    def _loop(
        self, node: NodeProto, body: GraphProto, known: Sequence[TypeProto | None]
    ) -> Visited:
        """A loop; its body is visited again where the first step changes sizes of the state."""
        limit, first = (self.values.get(name) for name in (*node.input, "", "")[:2])
        state = [self.value(name) for name in node.input[2:]]
        if len(body.input) < 2 + len(state) or len(body.output) < 1 + len(state):
            return [], Work(uncounted_heavy=Counter(("Loop",)))  # not valid
        names = zip(body.input[2:], body.output[1:], strict=False)
        kept = [formal.name == output.name for formal, output in names]
        entering = [
            value if same else KnownValue(value.type, value.sized)
            for value, same in zip(state, kept, strict=False)
        ]
        outputs, work = self._step(body, entering)
        goes_on, after = outputs[0], outputs[1 : 1 + len(state)]
        steps = _steps(limit, first, goes_on)
        counted = self._counted(body, state, limit, first) if steps is None else None
        steps = counted if steps is None else steps
        general = [merged_value([a.type, b.type]) for a, b in zip(state, after, strict=False)]
        if steps == 1:
            general = [value.type for value in after]
        elif any(value.type != typed for value, typed in zip(state, general, strict=True)):
            again = [replace(v, type=t) for v, t in zip(entering, general, strict=True)]
            outputs, work = self._step(body, again)
            after = outputs[1 : 1 + len(state)]
            general = [merged_value([t, v.type]) for t, v in zip(general, after, strict=True)]
        scans = outputs[1 + len(state) :]
        if steps is None:  # the sizes of what it stacks may be known from elsewhere
            sizes = [_first_size(typed) for typed in known[len(state) :]]
            steps = next((size for size in sizes if size is not None), None)
        deciding = [value for value in (limit, first, goes_on) if value is not None]
        settled = counted is not None or all(value.constant for value in deciding)
        if steps == 0:
            general = [value.type for value in state]
        found = [
            KnownValue(typed, settled and value.sized and before.sized)
            for typed, value, before in zip(general, after, state, strict=True)
        ]
        found += [KnownValue(_stacked(v.type, steps, 0), settled and v.sized) for v in scans]
        return found, work.repeated(steps, "Loop")

    def _step(
        self, body: GraphProto, state: Sequence[KnownValue], number: KnownValue | None = None
    ) -> Visited:
        """One step of a loop, of a number that may be known to follow from sizes."""
        flag = helper.make_tensor_type_proto(TensorProto.BOOL, [])
        goes_on = KnownValue(flag, constant=True, numbers=np.array(True), settled=True)
        values = (number or KnownValue(_NUMBER), goes_on, *state)
        names = (value.name for value in body.input)
        return self._body(body, dict(zip(names, values, strict=False)))

    def _counted(
        self,
        body: GraphProto,
        state: Sequence[KnownValue],
        limit: KnownValue | None,
        first: KnownValue | None,
    ) -> int | None:
        """Steps of a loop that goes on while a counter in its state says so; None: unknown.

        What the condition needs is evaluated step by step.
        """
        most = _MOST_STEPS if limit is None else _number(limit)
        if most is None or (first is not None and _number(first) is None):
            return None
        current = [numbers_of(value) for value in state]
        counters = [
            value if numbers is None else KnownValue(value.type, constant=True)
            for value, numbers in zip(state, current, strict=True)
        ]
        number = KnownValue(_NUMBER, constant=True)
        outputs, _ = self._step(body, counters, number)
        for step in range(min(most, _MOST_STEPS)):
            memo: Memo = {id(v): n for v, n in zip(counters, current, strict=True)}
            memo[id(number)] = np.array(step)
            goes_on = numbers_of(outputs[0], memo)
            if goes_on is None:
                return None
            if not goes_on.any():
                return step + 1
            current = [
                None if numbers is None else numbers_of(after, memo)
                for numbers, after in zip(current, outputs[1:], strict=False)
            ]
        return max(most, 0) if most <= _MOST_STEPS and limit is not None else None

    def _scan(
        self, node: NodeProto, body: GraphProto, types: Sequence[TypeProto | None]
    ) -> Visited:
        """A scan over an axis of its last inputs (since opset 9)."""
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        scanned = int(attributes.get("num_scan_inputs", 0))
        if self.opsets.get("", 1) < 9 or not 0 < scanned <= len(node.input):
            return self._leaf(node, types), Work(uncounted_heavy=Counter(("Scan",)))
        count = len(node.input) - scanned
        axes = list(attributes.get("scan_input_axes", ())) or [0] * scanned
        inputs = [self.value(name) for name in node.input]
        steps = None
        values = {}
        for formal, value in zip(body.input[:count], inputs, strict=False):
            values[formal.name] = KnownValue(value.type, value.sized)
        for formal, value, axis in zip(body.input[count:], inputs[count:], axes, strict=False):
            shape = value.shape
            if shape is not None and -len(shape) <= axis < len(shape):
                steps = shape[axis]
            values[formal.name] = KnownValue(_unstacked(value.type, axis), value.sized)
        outputs, work = self._body(body, values)
        back = list(attributes.get("scan_output_axes", ())) or [0] * len(outputs)
        found = [KnownValue(value.type, value.sized) for value in outputs[:count]]
        for value, axis in zip(outputs[count:], back, strict=False):
            found.append(KnownValue(_stacked(value.type, steps, axis), value.sized))
        return found, work.repeated(steps, "Scan")


def _steps(limit: KnownValue | None, first: KnownValue | None, goes_on: KnownValue) -> int | None:
    """Steps of a loop, None when they aren't known.

    Args:
        limit: the largest number of steps; None: there is none.
        first: the condition before the first step; None: it holds.
        goes_on: the condition after a step.
    """
    most = None if limit is None else _number(limit)
    starts = 1 if first is None else _number(first)
    lasts = _number(goes_on)
    if starts == 0:
        return 0
    if starts is None or lasts is None or (limit is not None and most is None):
        return None
    if lasts == 0:
        return 1 if most is None else min(max(most, 0), 1)
    return None if most is None else max(most, 0)


def _number(value: KnownValue) -> int | None:
    """The one whole number, or truth as 0 or 1, that a value is; None where it isn't known."""
    numbers = numbers_of(value)
    return int(numbers.item()) if numbers is not None and numbers.size == 1 else None


# Types


def sizes_of(typed: TypeProto) -> Shape | None:
    """Sizes of a tensor type; None when it is none, or one isn't known."""
    if not typed.HasField("tensor_type") or not typed.tensor_type.HasField("shape"):
        return None
    sizes = [dim.dim_value for dim in typed.tensor_type.shape.dim if dim.HasField("dim_value")]
    known = len(sizes) == len(typed.tensor_type.shape.dim) and min(sizes, default=0) >= 0
    return tuple(sizes) if known else None


def is_known(typed: TypeProto | None) -> bool:
    """Whether a type says all there is to know: of a tensor, its element type and sizes."""
    if typed is None or typed.WhichOneof("value") is None:
        return False
    if not typed.HasField("tensor_type"):
        return True
    return typed.tensor_type.elem_type != TensorProto.UNDEFINED and sizes_of(typed) is not None


def completed(first: TypeProto | None, second: TypeProto | None) -> TypeProto | None:
    """The first type, what it leaves open filled in from the second where they agree."""
    if first is None or second is None or is_known(first):
        return first or second
    if not first.HasField("tensor_type") or not second.HasField("tensor_type"):
        return first if first.WhichOneof("value") else second
    filled = TypeProto()
    filled.CopyFrom(first)
    if filled.tensor_type.elem_type == TensorProto.UNDEFINED:
        filled.tensor_type.elem_type = second.tensor_type.elem_type
    if not second.tensor_type.HasField("shape"):
        return filled
    if not filled.tensor_type.HasField("shape"):
        filled.tensor_type.shape.CopyFrom(second.tensor_type.shape)
        return filled
    dims, others = filled.tensor_type.shape.dim, second.tensor_type.shape.dim
    if len(dims) == len(others):
        for dim, other in zip(dims, others, strict=True):
            if other.HasField("dim_value") and not dim.HasField("dim_value"):
                dim.dim_value = other.dim_value
    return filled


def merged_value(types: Sequence[TypeProto | None]) -> TypeProto | None:
    """What several types agree on; None where one isn't known or they are of different kinds."""
    first = types[0]
    if first is None or any(each is None for each in types):
        return None
    agreed = TypeProto()
    agreed.CopyFrom(first)
    for other in types[1:]:
        assert other is not None
        if other == agreed:
            continue
        if not agreed.HasField("tensor_type") or not other.HasField("tensor_type"):
            return None
        if agreed.tensor_type.elem_type != other.tensor_type.elem_type:
            return None
        dims, others = agreed.tensor_type.shape.dim, other.tensor_type.shape.dim
        if not other.tensor_type.HasField("shape") or len(dims) != len(others):
            agreed.tensor_type.ClearField("shape")
            continue
        for dim, against in zip(dims, others, strict=True):
            if dim != against:
                dim.Clear()
    return agreed


def _stacked(typed: TypeProto | None, steps: int | None, axis: int) -> TypeProto | None:
    """The type of a tensor for each step, along a new axis."""
    if typed is None or not typed.HasField("tensor_type"):
        return None
    stacked = TypeProto()
    stacked.tensor_type.elem_type = typed.tensor_type.elem_type
    if typed.tensor_type.HasField("shape"):
        dims = list(typed.tensor_type.shape.dim)
        new = onnx.TensorShapeProto.Dimension()
        if steps is not None:
            new.dim_value = steps
        dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, new)
        stacked.tensor_type.shape.dim.extend(dims)
    return stacked


def _unstacked(typed: TypeProto | None, axis: int) -> TypeProto | None:
    """The type of one step of a tensor along an axis."""
    if typed is None or not typed.HasField("tensor_type"):
        return None
    step = TypeProto()
    step.tensor_type.elem_type = typed.tensor_type.elem_type
    if typed.tensor_type.HasField("shape"):
        dims = list(typed.tensor_type.shape.dim)
        if not -len(dims) <= axis < len(dims):
            return step
        del dims[axis]
        step.tensor_type.shape.SetInParent()
        step.tensor_type.shape.dim.extend(dims)
    return step


def _first_size(typed: TypeProto | None) -> int | None:
    if typed is None or not typed.HasField("tensor_type") or not typed.tensor_type.shape.dim:
        return None
    dim = typed.tensor_type.shape.dim[0]
    return dim.dim_value if dim.HasField("dim_value") else None


def _type_of(value: Array) -> TypeProto:
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_type_proto(element, list(value.shape))


def _is_random(node: NodeProto) -> bool:
    return any(word in node.op_type for word in _RANDOM)


def _plain(opsets: Iterable[tuple[str, int]]) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in opsets}


@lru_cache(maxsize=1024)
def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
