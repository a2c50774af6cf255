"""Propagate sizes and small numbers through a graph, node by node, and count its work.

ONNX's own inference propagates types, but loses numbers that a graph computes for its shapes (the
pads of a "same" convolution, positions from a length, targets of a Reshape). Here ONNX's
reference implementation evaluates small values wherever their inputs are known, and the inference
of the next node uses them. Bodies of If, Loop and Scan and model-local functions are visited with
the known facts about their inputs. Weights are never read. Linear in the nodes that are visited.
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
from offload.graph.onnx_types import (
    common_type,
    declared_shape,
    fill_in,
    is_known,
    known_shape,
    with_axis,
    without_axis,
)
from offload.graph.value_index import (
    FunctionKey,
    attribute_value,
    bodies,
    function_key,
    is_random,
)

# Larger values aren't evaluated: shapes, pads and lengths are small.
_MOST_ELEMENTS = 1024
# The most nodes visited in bodies and functions, counted on each call.
_MOST_INNER_NODES = 200_000
# The deepest nesting of function calls that is visited.
_MOST_CALLS = 50
# The most steps of a loop that are evaluated to count its steps.
_MOST_STEPS = 4096
_INT64_SCALAR = helper.make_tensor_type_proto(TensorProto.INT64, [])
# Positions of the inputs whose numbers decide the sizes of an operator's outputs.
_SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
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
# Operators whose output may be far larger than their inputs: evaluated only if its size is known.
_GROWING = frozenset(
    (
        *("ConstantOfShape", "Range", "Expand", "Tile", "Pad", "Resize", "Upsample", "OneHot"),
        *("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "CenterCropPad"),
    )
)
_STANDARD = ("", "ai.onnx")

# Errors of ONNX's reference implementation on values that an operator doesn't accept.
_EVALUATION_ERRORS = (
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
    """The known facts about one value.

    Attributes:
        type: its type, unknown sizes left open; None: unknown.
        sized: whether its sizes follow from the sizes of the model's inputs, known or not.
        constant: whether its numbers follow from the sizes of the model's inputs, known or not.
        source: the node that produces it, or the stored tensor; None: an input of the model.
        place: its position in the node's outputs.
        inputs: the node's inputs; None for an input that is left out.
        opset: version of ONNX's own operators at the node.
        numbers: its numbers; None where they are unknown or not yet evaluated.
        evaluated: whether `numbers` is final.
    """

    type: TypeProto | None
    sized: bool = True
    constant: bool = False
    source: NodeProto | TensorProto | None = None
    place: int = 0
    inputs: "tuple[KnownValue | None, ...]" = ()
    opset: int = 1
    numbers: Array | None = None
    evaluated: bool = False

    @property
    def shape(self) -> Shape | None:
        """Sizes of a tensor; None when one isn't known."""
        return known_shape(self.type)

    @property
    def is_small(self) -> bool:
        """Whether its size is known and it has few elements."""
        shape = self.shape
        return shape is not None and prod(shape) <= _MOST_ELEMENTS


# Numbers

Memo: TypeAlias = dict[int, Array | None]


def numbers_of(value: KnownValue, memo: Memo | None = None) -> Array | None:
    """Numbers of a small constant value; None where they can't be known.

    Each value is evaluated once, after its inputs, without recursion.

    Args:
        value: the value to evaluate.
        memo: results for one step of a loop, by the id of a value; new results are added to it.
            None: results are stored in the values.
    """
    pending = [value]
    while pending:
        current = pending[-1]
        if _is_evaluated(current, memo):
            pending.pop()
            continue
        inputs = _inputs_to_evaluate(current, memo)
        if inputs:
            pending.extend(inputs)
            continue
        pending.pop()
        numbers = None if inputs is None else _evaluate(current, memo)
        if memo is None:
            current.numbers, current.evaluated = numbers, True
        else:
            memo[id(current)] = numbers
    return _result(value, memo)


def _is_evaluated(value: KnownValue, memo: Memo | None) -> bool:
    if memo is None:
        return value.evaluated
    return id(value) in memo or value.numbers is not None


def _result(value: KnownValue, memo: Memo | None) -> Array | None:
    """The numbers of an evaluated value."""
    return value.numbers if memo is None else memo.get(id(value), value.numbers)


def _inputs_to_evaluate(value: KnownValue, memo: Memo | None) -> list[KnownValue] | None:
    """Inputs to evaluate before a value; None where the value can't be evaluated."""
    node = value.source
    if not value.constant or node is None:
        return None
    if not isinstance(node, NodeProto) or _is_shape_or_size(node):
        return []
    inputs = [operand for operand in value.inputs if operand is not None]
    if not all(operand.is_small or operand.shape is None for operand in inputs):
        return None
    if any(_is_evaluated(v, memo) and _result(v, memo) is None for v in inputs):
        return None
    return [operand for operand in inputs if not _is_evaluated(operand, memo)]


def _evaluate(value: KnownValue, memo: Memo | None) -> Array | None:
    """Numbers of a value whose inputs are evaluated."""
    node = value.source
    if isinstance(node, TensorProto):
        if is_external(node) or node.data_type == TensorProto.STRING or not value.is_small:
            return None
        return numpy_helper.to_array(node)
    assert isinstance(node, NodeProto)
    if _is_shape_or_size(node):
        shape = None if value.inputs[0] is None else value.inputs[0].shape
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(prod(shape), np.int64)
        start, end = attribute_value(node, "start", 0), attribute_value(node, "end", len(shape))
        return np.array(shape[start:end], np.int64)
    too_large = value.shape is not None and not value.is_small
    if too_large or (value.shape is None and node.op_type in _GROWING):
        return None
    arrays = {}
    for name, operand in zip(node.input, value.inputs, strict=True):
        if operand is not None:
            numbers = _result(operand, memo)
            if numbers is None:
                return None
            arrays[name] = numbers
    return _run(node, arrays, value.opset, value.place)


def _is_shape_or_size(node: NodeProto) -> bool:
    return node.op_type in ("Shape", "Size") and node.domain in _STANDARD


def _run(node: NodeProto, arrays: Mapping[str, Array], opset: int, place: int) -> Array | None:
    """One output of a node, by ONNX's reference implementation; None where it can't run it."""
    from onnx.reference import ReferenceEvaluator  # slow: it imports every operator

    if node.domain not in _STANDARD or any(True for _ in bodies(node)):
        return None
    output_name = node.output[place]
    graph = GraphProto(node=[node])
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in arrays)
    graph.output.append(onnx.ValueInfoProto(name=output_name))
    try:
        with np.errstate(all="ignore"):
            (output,) = ReferenceEvaluator(graph, {"": opset}).run([output_name], dict(arrays))
    except _EVALUATION_ERRORS:
        return None
    array = np.asarray(output) if isinstance(output, np.ndarray | np.generic) else None
    return array if array is not None and array.size <= _MOST_ELEMENTS else None


# Nodes, bodies, functions


@dataclass
class _ModelScope:
    """The functions of a model, and counters shared by all of its scopes."""

    functions: Mapping[FunctionKey, FunctionProto]
    ir_version: int
    visited: int = 0
    calls: list[FunctionKey] = field(default_factory=list)


Visited: TypeAlias = tuple[list[KnownValue], Work]


@dataclass(frozen=True)
class Scope:
    """The values that are visible to the nodes of a graph, a body or a function, by name.

    Attributes:
        values: values of this graph; in a body also those of the graphs around it.
        opsets: versions of operators by domain.
        shared: state shared by all scopes of the model.
        attributes: inside a function, the attributes of its call.
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
        by_key = {function_key(function): function for function in functions}
        return cls(ChainMap(), _by_domain(opsets.items()), _ModelScope(by_key, ir_version))

    def value(self, name: str) -> KnownValue:
        """The known facts about a value; none for a value that is not in the scope."""
        return self.values.get(name) or KnownValue(None, sized=False)

    def numbers(self, name: str) -> Array | None:
        """Numbers of a small value; None when they aren't known."""
        return numbers_of(self.value(name))

    def add_stored(self, graph: GraphProto) -> None:
        """Add the stored tensors of a graph to the scope."""
        for tensor in graph.initializer:
            typed = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            self.values[tensor.name] = KnownValue(typed, constant=True, source=tensor)
        for sparse in graph.sparse_initializer:
            typed = helper.make_tensor_type_proto(sparse.values.data_type, list(sparse.dims))
            self.values[sparse.values.name] = KnownValue(typed)

    def visit(
        self,
        nodes: Iterable[NodeProto],
        known: Callable[[str], TypeProto | None] = lambda _: None,
    ) -> list[Work]:
        """Add the outputs of nodes to the scope, and count the work of each node.

        Args:
            nodes: in topological order.
            known: types that are already known, by value name.
        """
        return [self._visit(self._resolved(node), known) for node in nodes]

    def _visit(self, node: NodeProto, known: Callable[[str], TypeProto | None]) -> Work:
        types = [known(name) if name else None for name in node.output]
        work = None
        if function := self.shared.functions.get(function_key(node)):
            outputs, work = self._call(node, function)
        elif node.domain in _STANDARD and node.op_type == "If":
            outputs, work = self._if(node)
        elif node.domain in _STANDARD and node.op_type == "Loop":
            outputs, work = self._loop(node, types)
        elif node.domain in _STANDARD and node.op_type == "Scan":
            outputs, work = self._scan(node, types)
        else:
            outputs = self._leaf(node, types)
        for name, typed, output in zip_longest(node.output, types, outputs):
            if name:
                value = output or KnownValue(None, sized=False)
                if typed is not None and typed != value.type:
                    value = replace(value, type=fill_in(typed, value.type))
                self.values[name] = value
        if all(self.value(name).constant for name in node.output if name):
            return Work()  # arithmetic of sizes: nothing to count
        if work is not None:
            return work
        return node_work(node, lambda name: self.value(name).shape, self.numbers)

    def _leaf(self, node: NodeProto, types: Sequence[TypeProto | None]) -> list[KnownValue]:
        """The outputs of a node without bodies."""
        inputs = tuple(self.values.get(name) for name in node.input)
        present = [value for value in inputs if value is not None]
        places = (place for place in _SHAPE_INPUTS.get(node.op_type, ()) if place < len(inputs))
        constant = all(value.constant for value in present) and not is_random(node)
        sized = constant or (
            node.op_type not in _DATA_SIZED
            and all(value.sized for value in present)
            and all(value.constant for p in places if (value := inputs[p]) is not None)
        )
        if _is_shape_or_size(node):
            constant = sized
        inferred: Mapping[str, TypeProto] = {}
        if not all(is_known(typed) for name, typed in zip(node.output, types, strict=True) if name):
            inferred = self._infer(node)
        opset = self.opsets.get("", 1)
        outputs = []
        for place, (name, typed) in enumerate(zip(node.output, types, strict=True)):
            best = fill_in(typed, inferred.get(name))
            value = KnownValue(best, sized, constant, node, place, inputs, opset)
            if constant and not is_known(best) and (numbers := numbers_of(value)) is not None:
                element = helper.np_dtype_to_tensor_dtype(numbers.dtype)
                value.type = helper.make_tensor_type_proto(element, list(numbers.shape))
            outputs.append(value)
        return outputs

    def _infer(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Types of a node's outputs by ONNX's inference, which gets the numbers that set sizes."""
        domain = "" if node.domain in _STANDARD else node.domain
        schema = _schema(node.op_type, self.opsets.get(domain, 1), domain)
        if schema is None:
            return {}
        types = {name: self.value(name).type or TypeProto() for name in node.input if name}
        numbers = {}
        for place in _SHAPE_INPUTS.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if (array := self.numbers(name)) is not None:
                numbers[name] = numpy_helper.from_array(array, name)
        try:
            return onnx.shape_inference.infer_node_outputs(
                schema, node, types, numbers, ir_version=self.shared.ir_version
            )
        except _INFERENCE_ERRORS:
            return {}

    def _resolved(self, node: NodeProto) -> NodeProto:
        """The node with the function call's attributes; absent inputs get empty names."""
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
        """Visit the nodes of a body or function, and return the sum of their work."""
        self.shared.visited += len(nodes)
        if self.shared.visited > _MOST_INNER_NODES:
            return Work(uncounted_heavy=Counter(node.op_type for node in nodes))
        return sum(self.visit(nodes), Work())

    def _call(self, node: NodeProto, function: FunctionProto) -> Visited:
        """Outputs and work of a model-local function, which can use nothing but its inputs."""
        key, calls = function_key(function), self.shared.calls
        if key in calls or len(calls) >= _MOST_CALLS:  # the function may call itself for ever
            return [], Work(uncounted_heavy=Counter((node.op_type,)))
        attributes = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
        opsets = _by_domain((entry.domain, entry.version) for entry in function.opset_import)
        arguments = (self.values.get(name) for name in node.input)
        values = {n: v for n, v in zip(function.input, arguments, strict=False) if v is not None}
        inner = Scope(ChainMap(values), opsets, self.shared, attributes)
        calls.append(key)
        work = inner.work_of(function.node)
        calls.pop()
        return [inner.value(name) for name in function.output], work

    def _body(self, body: GraphProto, values: Mapping[str, KnownValue]) -> Visited:
        """Outputs and work of a body, which can use the values of this scope."""
        inner = replace(self, values=self.values.new_child(dict(values)))
        inner.add_stored(body)
        work = inner.work_of(body.node)
        return [inner.value(output.name) for output in body.output], work

    def _if(self, node: NodeProto) -> Visited:
        """The branch that is taken where that is known, else the common types of both branches."""
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        branches = [graphs[name] for name in ("then_branch", "else_branch") if name in graphs]
        condition = self.numbers(node.input[0])
        if condition is not None and condition.size == 1 and len(branches) == 2:
            return self._body(branches[0 if condition.item() else 1], {})
        visited = [self._body(branch, {}) for branch in branches]
        is_decided_by_sizes = self.value(node.input[0]).constant
        outputs = []
        for values in zip(*(results for results, _ in visited), strict=False):
            sized = is_decided_by_sizes and all(value.sized for value in values)
            outputs.append(KnownValue(common_type([value.type for value in values]), sized))
        works = [work for _, work in visited]
        return outputs, max(works, key=lambda w: (w.uncounted.total(), w.flops), default=Work())

    def _loop(self, node: NodeProto, types: Sequence[TypeProto | None]) -> Visited:
        """A loop; its body is visited again where the first step changes sizes of the state."""
        body = next(bodies(node), GraphProto())
        limit, first = (self.values.get(name) for name in (*node.input, "", "")[:2])
        state = [self.value(name) for name in node.input[2:]]
        count = len(state)
        if len(body.input) < 2 + count or len(body.output) < 1 + count:
            return [], Work(uncounted_heavy=Counter(("Loop",)))  # not valid
        entering = [
            value if formal.name == output.name else KnownValue(value.type, value.sized)
            for value, formal, output in zip(state, body.input[2:], body.output[1:], strict=False)
        ]
        outputs, work = self._step(body, entering)
        goes_on, after = outputs[0], outputs[1 : 1 + count]
        steps = _steps(limit, first, goes_on)
        evaluated = self._evaluated_steps(body, state, limit, first) if steps is None else None
        steps = evaluated if steps is None else steps
        merged = [common_type([a.type, b.type]) for a, b in zip(state, after, strict=False)]
        if steps == 1:
            merged = [value.type for value in after]
        elif any(value.type != typed for value, typed in zip(state, merged, strict=True)):
            again = [replace(v, type=t) for v, t in zip(entering, merged, strict=True)]
            outputs, work = self._step(body, again)
            after = outputs[1 : 1 + count]
            merged = [common_type([t, v.type]) for t, v in zip(merged, after, strict=True)]
        if steps is None:  # the sizes of stacked outputs may be known from elsewhere
            shapes = [declared_shape(typed) for typed in types[count:] if typed is not None]
            steps = next((s[0] for s in shapes if s and isinstance(s[0], int)), None)
        conditions = [value for value in (limit, first, goes_on) if value is not None]
        sized = evaluated is not None or all(value.constant for value in conditions)
        if steps == 0:
            merged = [value.type for value in state]
        results = [
            KnownValue(typed, sized and value.sized and before.sized)
            for typed, value, before in zip(merged, after, state, strict=True)
        ]
        results += [
            KnownValue(with_axis(value.type, steps, 0), sized and value.sized)
            for value in outputs[1 + count :]
        ]
        return results, work.repeated(steps, "Loop")

    def _step(
        self, body: GraphProto, state: Sequence[KnownValue], number: KnownValue | None = None
    ) -> Visited:
        """One step of a loop; `number` is the known number of the step."""
        flag = helper.make_tensor_type_proto(TensorProto.BOOL, [])
        goes_on = KnownValue(flag, constant=True, numbers=np.array(True), evaluated=True)
        values = (number or KnownValue(_INT64_SCALAR), goes_on, *state)
        names = (value.name for value in body.input)
        return self._body(body, dict(zip(names, values, strict=False)))

    def _evaluated_steps(
        self,
        body: GraphProto,
        state: Sequence[KnownValue],
        limit: KnownValue | None,
        first: KnownValue | None,
    ) -> int | None:
        """Number of steps of a loop whose condition depends on a counter in its state.

        The values that the condition needs are evaluated step by step. None: not known.
        """
        most = _MOST_STEPS if limit is None else _scalar(limit)
        if most is None or (first is not None and _scalar(first) is None):
            return None
        current = [numbers_of(value) for value in state]
        counters = [
            value if numbers is None else KnownValue(value.type, constant=True)
            for value, numbers in zip(state, current, strict=True)
        ]
        number = KnownValue(_INT64_SCALAR, constant=True)
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

    def _scan(self, node: NodeProto, types: Sequence[TypeProto | None]) -> Visited:
        """A scan over an axis of its last inputs (since opset 9)."""
        body = next(bodies(node), GraphProto())
        scanned = int(attribute_value(node, "num_scan_inputs", 0))
        if self.opsets.get("", 1) < 9 or not 0 < scanned <= len(node.input):
            return self._leaf(node, types), Work(uncounted_heavy=Counter(("Scan",)))
        count = len(node.input) - scanned
        axes = attribute_value(node, "scan_input_axes") or [0] * scanned
        inputs = [self.value(name) for name in node.input]
        steps = None
        values = {}
        for formal, value in zip(body.input[:count], inputs, strict=False):
            values[formal.name] = KnownValue(value.type, value.sized)
        for formal, value, axis in zip(body.input[count:], inputs[count:], axes, strict=False):
            shape = value.shape
            if shape is not None and -len(shape) <= axis < len(shape):
                steps = shape[axis]
            values[formal.name] = KnownValue(without_axis(value.type, axis), value.sized)
        outputs, work = self._body(body, values)
        output_axes = attribute_value(node, "scan_output_axes") or [0] * len(outputs)
        results = [KnownValue(value.type, value.sized) for value in outputs[:count]]
        for value, axis in zip(outputs[count:], output_axes, strict=False):
            results.append(KnownValue(with_axis(value.type, steps, axis), value.sized))
        return results, work.repeated(steps, "Scan")


def _steps(limit: KnownValue | None, first: KnownValue | None, goes_on: KnownValue) -> int | None:
    """Number of steps of a loop, None when it isn't known.

    Args:
        limit: the largest number of steps; None: no limit.
        first: the condition before the first step; None: true.
        goes_on: the condition after a step.
    """
    most = None if limit is None else _scalar(limit)
    starts = 1 if first is None else _scalar(first)
    continues = _scalar(goes_on)
    if starts == 0:
        return 0
    if starts is None or continues is None or (limit is not None and most is None):
        return None
    if continues == 0:
        return 1 if most is None else min(max(most, 0), 1)
    return None if most is None else max(most, 0)


def _scalar(value: KnownValue) -> int | None:
    """A value that is one integer, or a condition as 0 or 1; None where it isn't known."""
    numbers = numbers_of(value)
    return int(numbers.item()) if numbers is not None and numbers.size == 1 else None


def _by_domain(opsets: Iterable[tuple[str, int]]) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in opsets}


@lru_cache(maxsize=1024)
def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
