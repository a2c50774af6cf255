"""A model's inputs: what it takes, and random values in the range that each input has."""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from offload.bundle.bundle import Bundle, ModelValue
from offload.bundle.write import value_of
from offload.errors import InputError, OffloadError
from offload.graph.dimensions import Symbols
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.onnx_file import is_external
from offload.graph.value_index import nested_nodes

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]

# Sizes tried for open dimensions until the model accepts them: multiples that strided networks
# accept, then small ones. An open first dimension is taken to be the batch.
_SIZES = (64, 96, 32, 48, 128, 224, 320, 512, 256, 16, 24, 8, 5, 4, 3, 2, 1)
_BATCHES = (2, 3, 1)
# Sizes of the example that a refusal shows: of a picture's sides, and of everything else.
_PICTURE_SIZE, _OTHER_SIZE = 640, 64
# Element types that numpy holds under another name, and those it lacks, which the runtime carries
# as the bits of another type.
_NUMPY = {
    "float": "float32",
    "double": "float64",
    "string": "object",
    "bfloat16": "uint16",
    "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8",
    "float8e5m2": "uint8",
    "float8e5m2fnuz": "uint8",
    "int4": "int8",
    "uint4": "uint8",
}
_PICTURE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(uint8)")
_FLOATS = frozenset(("float", "double", "float16"))
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64))
# Bits of a float8 up to this are finite numbers of at most 1 in every float8 type.
_FLOAT8_BITS = 0x38


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Bounds of an input's numbers, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class ModelInputs:
    """What a model takes, and what it says itself about those values.

    Attributes:
        values: the inputs that must be given, in the model's order.
        defaults: names of the inputs that may be left out.
        ranges: bounds that follow from the model, such as the rows of a table it looks up.
        words: text that the model knows: categories, keys, vocabularies.
        sizes: numbers stored in the model that may be sizes of an input.
    """

    values: tuple[ModelValue, ...]
    defaults: tuple[str, ...] = ()
    ranges: Mapping[str, ValueRange] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def bound(self, shapes: Shapes) -> "ModelInputs":
        """The same inputs with sizes for open dimensions; see `bound`."""
        return replace(self, values=bound(self.values, shapes))


@dataclass(frozen=True)
class GivenInputs:
    """What the caller says about inputs.

    Attributes:
        arrays: inputs given outright.
        ranges: bounds for random ones.
        shapes: sizes of inputs with open dimensions.
        seed: of the random numbers.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    ranges: Mapping[str, ValueRange] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    seed: int = 0


def bound(values: Sequence[ModelValue], shapes: Shapes) -> tuple[ModelValue, ...]:
    """Inputs with sizes in place of open dimensions, named sizes bound in all inputs together.

    Args:
        values: inputs of a model.
        shapes: sizes by input name.

    Raises:
        InputError: a shape names no input, or contradicts the input or another shape.
    """
    by_name = {value.name: value for value in values}
    pairs: list[tuple[str, int]] = []
    owners: list[str] = []
    for name, sizes in shapes.items():
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise InputError(f"the model has no input {name!r} to give a shape to; it has: {known}")
        declared = by_name[name].shape
        if declared is not None and (
            len(declared) != len(sizes)
            or any(isinstance(d, int) and d != n for d, n in zip(declared, sizes, strict=True))
        ):
            raise _does_not_fit(by_name[name], sizes)
        named = [(d, n) for d, n in zip(declared or (), sizes, strict=False) if isinstance(d, str)]
        pairs += named
        owners += [name] * len(named)
    symbols = Symbols.of(_shapes(values))
    wrong = symbols.bind_all(pairs)
    if wrong is not None:
        raise _does_not_fit(by_name[owners[wrong]], shapes[owners[wrong]])
    return tuple(replace(v, shape=shapes.get(v.name, _sized(v, symbols))) for v in values)


def _sized(value: ModelValue, symbols: Symbols) -> tuple[int | str | None, ...] | None:
    """A shape with the sizes that are known of its names."""
    if value.shape is None:
        return None
    return tuple(symbols.substituted(d) if isinstance(d, str) else d for d in value.shape)


def _does_not_fit(value: ModelValue, sizes: Sequence[int]) -> InputError:
    return InputError(
        f"input {value.name!r} has shape {_text(value.shape)}: {_text(sizes)} does not fit it"
    )


def _text(shape: Sequence[int | str | None] | None) -> str:
    if shape is None:
        return "of any rank"
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def open_inputs(values: Iterable[ModelValue]) -> tuple[ModelValue, ...]:
    """The inputs that are tensors with a dimension without a size."""
    return tuple(
        value
        for value in values
        if value.type.startswith("tensor(")
        and (value.shape is None or not all(isinstance(size, int) for size in value.shape))
    )


def shape_options(values: Sequence[ModelValue]) -> str:
    """Options that give every open dimension a size, ready to paste; empty where none is open.

    Like `--shape images=1x3x640x640`: 1 for the first dimension, 3 channels and 640 for the sides
    of what looks like a picture, 64 for the rest. Dimensions of equal names get equal sizes, and
    an input whose sizes follow from the others is left out.
    """
    options = []
    symbols = Symbols.of(_shapes(values))
    while left := open_inputs(replace(value, shape=_sized(value, symbols)) for value in values):
        name, sizes = left[0].name, _example(left[0], symbols)
        options.append(f"--shape {shlex.quote(name + '=' + 'x'.join(map(str, sizes)))}")
        values = [replace(v, shape=sizes) if v.name == name else v for v in values]
    return " ".join(options)


def _shapes(values: Iterable[ModelValue]) -> Iterator[tuple[int | str | None, ...]]:
    return (value.shape or () for value in values)


def _example(value: ModelValue, symbols: Symbols) -> tuple[int, ...]:
    """Sizes for an input with open dimensions, such as a user might give; binds its symbols."""
    shape = (None, 3, None, None) if value.shape is None else value.shape
    guesses = [1, *(_OTHER_SIZE for _ in shape[1:])]
    if len(shape) == 4 and value.type in _PICTURE_TYPES:
        sides = [_PICTURE_SIZE, _PICTURE_SIZE]
        if shape[3] in (1, 3):
            guesses = [1, *sides, 3]
        elif shape[1] in (1, 3) or not isinstance(shape[1], int):
            guesses = [1, 3, *sides]
    for guess, dim in zip(guesses, shape, strict=False):
        for symbol in symbols.unknown(dim) if isinstance(dim, str) else ():
            symbols.sizes[symbol] = guess
    return tuple(_known(d, symbols, g) for g, d in zip(guesses, shape, strict=False))


def open_sizes_sentence(values: Sequence[ModelValue]) -> str:
    """Which input leaves which axes open, and the options that give sizes to all inputs.

    Empty where no size is open.
    """
    value = next(iter(open_inputs(values)), None)
    if value is None:
        return ""
    if value.shape is None:
        what = f"input {value.name!r} may have any shape"
    else:
        axes = [(axis, dim) for axis, dim in enumerate(value.shape) if not isinstance(dim, int)]
        shown = [str(axis) + (f" ({dim})" if isinstance(dim, str) else "") for axis, dim in axes]
        listed = ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]
        word = "axes" if len(axes) > 1 else "axis"
        what = f"input {value.name!r} has the dynamic {word} {listed}"
    return f"{what}: give sizes, like {shape_options(values)}"


def draw(inputs: ModelInputs, seed: int = 0) -> dict[str, Array]:
    """One set of random inputs for a model whose sizes are all known.

    Floats are normal, bytes and pictures cover all of their range, indices stay within their
    table, text is made of the model's own words.

    Raises:
        InputError: a size is open, or no random value fits an input's type.
    """
    if unknown := open_sizes_sentence(inputs.values):
        raise InputError(unknown)
    shapes = {value.name: _fixed(value) for value in inputs.values}
    return _drawn(inputs, shapes, inputs.ranges, seed)


def _fixed(value: ModelValue) -> tuple[int, ...]:
    """The sizes of an input that has no open ones."""
    return tuple(size for size in value.shape or () if isinstance(size, int))


def sample(
    inputs: ModelInputs,
    accepts: Callable[[Feeds], Any],
    given: GivenInputs,
    count: int,
    advice: str = "give one with --input",
) -> list[Feeds]:
    """Up to `count` sets of inputs that a model accepts, of different sizes where they may vary.

    Args:
        inputs: what the model takes.
        accepts: runs the model; raises an OffloadError where it can't.
        given: what the caller knows better.
        count: at least 1; a model of fixed sizes gets one set.
        advice: what to do where no sizes are found, as the end of a sentence.

    Raises:
        InputError: no random value fits an input's type, `given` names no input, or no sizes were
            found that the model accepts.
    """
    known = [*(value.name for value in inputs.values), *inputs.defaults]
    for name in (*given.arrays, *given.ranges, *given.shapes):
        if name not in known:
            raise InputError(f"the model has no input {name!r}; it has: {', '.join(known)}")
    ranges = {**inputs.ranges, **given.ranges}
    arrays = {name: array for name, array in given.arrays.items() if name not in inputs.defaults}
    drawn = replace(inputs, values=tuple(v for v in inputs.values if v.name not in arrays))
    found: list[Feeds] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    refusal: OffloadError | None = None
    for shapes in _guesses(inputs, given):
        key = tuple(shapes[value.name] for value in inputs.values)
        if key in seen:
            continue
        seen.add(key)
        feeds = _drawn(drawn, shapes, ranges, given.seed) | arrays
        try:
            accepts(feeds)
        except OffloadError as error:
            refusal = refusal or error
            continue
        found.append({**feeds, **given.arrays})
        if len(found) == count:
            break
    if not found:
        raise InputError(f"no random input fits the model ({refusal}): {advice}")
    return found


def _guesses(inputs: ModelInputs, given: GivenInputs) -> Iterator[Shapes]:
    """Guesses at the shapes of all inputs that agree with each other.

    Dimensions of equal names get equal sizes, expressions of them what they come to. Where no
    equal sizes fit, one name is tried as the sum of two others: what a cache holds with what is
    new.
    """
    named = {value.name for value in inputs.values}
    shapes = {name: sizes for name, sizes in given.shapes.items() if name in named}
    shapes |= {name: array.shape for name, array in given.arrays.items() if name in named}
    values = [replace(v, shape=shapes.get(v.name, v.shape)) for v in inputs.values]
    symbols = Symbols.of(_shapes(inputs.values))
    symbols.bind_all(
        [
            (dim, size)
            for value in inputs.values
            for dim, size in zip(value.shape or (), shapes.get(value.name, ()), strict=False)
            if isinstance(dim, str)
        ]
    )
    for size in dict.fromkeys((*_SIZES, *inputs.sizes)):
        for batch in _BATCHES:
            yield _guess(values, symbols.copy(), batch, size)
    lengths = [
        dim
        for value in values
        for dim in (value.shape or ())[1:]
        if isinstance(dim, str) and symbols.unknown(dim) == (dim,)
    ]
    for total, *parts in permutations(dict.fromkeys(lengths), 3):
        if parts[0] < parts[1]:
            for size in _SIZES[-8::2]:
                tried = symbols.copy()
                tried.sizes |= {parts[0]: size, parts[1]: size, total: 2 * size}
                yield _guess(values, tried, _BATCHES[0], size)


def _guess(values: Sequence[ModelValue], symbols: Symbols, batch: int, size: int) -> Shapes:
    """One guess: `batch` for open first dimensions, `size` for the others."""
    dims = [(axis, dim) for value in values for axis, dim in enumerate(value.shape or ())]
    for axis, dim in dims:
        if isinstance(dim, str) and symbols.unknown(dim) == (dim,):
            symbols.sizes[dim] = size if axis else batch
    for axis, dim in dims:
        for symbol in symbols.unknown(dim) if isinstance(dim, str) else ():
            symbols.sizes[symbol] = size if axis else batch
    return {
        value.name: tuple(
            _known(dim, symbols, size if axis else batch)
            for axis, dim in enumerate(value.shape or ())
        )
        for value in values
    }


def _known(dim: int | str | None, symbols: Symbols, guess: int) -> int:
    found = symbols.size(dim) if isinstance(dim, str) else dim
    return guess if found is None else found


def numpy_type(kind: str) -> np.dtype[Any] | None:
    """The numpy type that holds or carries `tensor(...)`; None where none does."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    if not kind.startswith("tensor(") or not (
        name in _NUMPY or name in _FLOATS or name in _INTEGERS or name == "bool"
    ):
        return None
    return np.dtype(_NUMPY.get(name, name))


def _drawn(
    inputs: ModelInputs, shapes: Shapes, ranges: Mapping[str, ValueRange], seed: int
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in inputs.values:
        dtype, shape = numpy_type(value.type), shapes[value.name]
        if dtype is None:
            raise InputError(
                f"input {value.name!r} is {value.type}, for which no value can be drawn or read"
                " from a file: plan without measuring, `offload split --device 5e9 --server 5e11"
                " --encoding raw`"
            )
        # A row first: numpy turns what it draws without any dimension into a scalar.
        row = _row(value.type[7:-1], math.prod(shape), inputs.words, ranges.get(value.name), rng)
        feeds[value.name] = np.asarray(row, dtype).reshape(shape)
    return feeds


def _row(
    kind: str, count: int, words: Sequence[str], bounds: ValueRange | None, rng: np.random.Generator
) -> Array:
    if kind == "string":
        return rng.choice(np.array(words or ("a", "b"), object), count)
    if kind == "bool":
        return rng.integers(0, 2, count)
    if kind.startswith("float8"):
        return rng.integers(0, _FLOAT8_BITS + 1, count)
    if kind in _FLOATS or kind == "bfloat16":
        drawn = (
            rng.uniform(bounds.low, bounds.high, count) if bounds else rng.standard_normal(count)
        )
        return (drawn.astype(np.float32).view(np.uint32) >> 16) if kind == "bfloat16" else drawn
    whole = bounds or (ValueRange(0, 255) if kind == "uint8" else ValueRange(0, 1))
    return rng.integers(math.ceil(whole.low), math.floor(whole.high) + 1, count)


# Operators that hand on the numbers they get, and those that use them to pick rows of a table.
_PASSING = frozenset(
    ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice")
)
_PICKING = frozenset(("Gather", "GatherElements"))
_MOST_WORDS = 10_000


def inputs_of(model: Model, graph: Graph | None = None) -> ModelInputs:
    """What a model takes; open sizes as a graph of it has bound them, if one is given."""
    listed = {value.name: value for value in model.proto.graph.input}
    values = tuple(value_of(listed[name]) for name in model.values.inputs)
    if graph is not None:
        values = bound(values, _known_shapes(graph))
    return ModelInputs(
        values,
        tuple(model.values.defaults),
        _ranges(model.proto),
        tuple(_words([model.proto])),
        tuple(_sizes(model.proto)),
    )


def bundle_inputs(bundle: Bundle) -> ModelInputs:
    """What a bundle's model takes, as far as the segments that are here tell.

    Raises:
        InputError: a segment's file is damaged.
    """
    files = [bundle.segment_path(segment.part) for segment in bundle.parts()]
    protos = [load_model(path).proto for path in files if path.is_file()]
    ranges: dict[str, ValueRange] = {}
    for proto in protos:
        for name, found in _ranges(proto).items():
            known = ranges.get(name, found)
            ranges[name] = ValueRange(max(known.low, found.low), min(known.high, found.high))
    return ModelInputs(bundle.inputs, ranges=ranges, words=tuple(_words(protos)))


def _known_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The inputs all of whose sizes a graph knows."""
    found = {}
    for name in graph.inputs:
        shape = graph.tensors[name].shape
        if shape is not None and None not in shape:
            found[name] = tuple(size for size in shape if size is not None)
    return found


def _sizes(proto: ModelProto) -> list[int]:
    """Sizes that the model itself names: some exporters bake those of their example in."""
    stored = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT64]
    for node in proto.graph.node:
        stored.extend(a.t for a in node.attribute if a.t.data_type == TensorProto.INT64)
    small = (tensor for tensor in stored if math.prod(tensor.dims) <= 8 and tensor.raw_data)
    found = {int(n) for tensor in small for n in np.frombuffer(tensor.raw_data, np.int64)}
    return sorted(n for n in found if 1 < n <= 1024)[:32]


def _words(protos: Iterable[ModelProto]) -> list[str]:
    """Text that models know: categories, keys, vocabularies, constants."""
    found: set[str] = set()
    for proto in protos:
        for tensor in proto.graph.initializer:
            found.update(_stored_words(tensor))
        for node in (inner for outer in proto.graph.node for inner in nested_nodes(outer)):
            if node.domain == "ai.onnx.ml":
                found.update(w.decode(errors="replace") for a in node.attribute for w in a.strings)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.update(_stored_words(attribute.t))
        if len(found) >= _MOST_WORDS:
            break
    return sorted(found)[:_MOST_WORDS]


def _stored_words(tensor: TensorProto) -> list[str]:
    if tensor.data_type != TensorProto.STRING or is_external(tensor):
        return []
    return [word.decode(errors="replace") for word in tensor.string_data]


def _ranges(proto: ModelProto) -> dict[str, ValueRange]:
    """Bounds of the inputs that pick rows of a stored table, through operators that hand on."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    origin = {value.name: value.name for value in proto.graph.input if value.name not in sizes}
    ranges: dict[str, ValueRange] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            table = next((a.t for a in node.attribute if a.name == "value"), None)
            if table is not None:
                sizes[node.output[0]] = tuple(table.dims)
        elif node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type in _PICKING and node.input[1] in origin and node.input[0] in sizes:
            source, shape = origin[node.input[1]], sizes[node.input[0]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if -len(shape) <= axis < len(shape) and shape[axis]:
                known = ranges.get(source)
                rows = shape[axis]
                ranges[source] = ValueRange(0, min(rows - 1, known.high) if known else rows - 1)
    return ranges
