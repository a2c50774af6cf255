"""Live inputs for any model: random, in the range that each input really has."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from offload.errors import InputError, OffloadError
from offload.graph.elements import dtype_name
from offload.graph.infer import known_size
from offload.graph.load import Model

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]

# Sizes tried for dynamic dimensions until the model takes them: multiples that strided networks
# like, then small ones. First dimensions are taken to be batches.
_SIZES = (64, 96, 32, 48, 128, 224, 320, 512, 256, 16, 24, 8, 5, 4, 3, 2, 1)
_BATCHES = (2, 3, 1)
# Dtypes that carry those numpy lacks, as the runtime does.
_NUMPY = {"float": "float32", "double": "float64", "bfloat16": "uint16", "string": "object"}
# Operators that hand on the numbers they get, and those that use them to pick rows of a table.
_PASSING = frozenset(
    ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice")
)
_PICKING = frozenset(("Gather", "GatherElements"))


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an input's numbers, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Wish:
    """What the caller says about inputs.

    Attributes:
        arrays: inputs given outright.
        ranges: bounds for random ones.
        shapes: sizes of inputs with dynamic dimensions.
        seed: of the random numbers.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0


def samples(model: Model, accepts: Callable[[Feeds], Any], wish: Wish, count: int) -> list[Feeds]:
    """Up to `count` sets of inputs that a model accepts, of different sizes where they may vary.

    Args:
        model: what they are for.
        accepts: runs the model; raises an OffloadError where it can't.
        wish: what the caller knows better.
        count: at least 1; a model of fixed sizes gets one set.

    Raises:
        InputError: an input is of a type no array can hold, a wish names no input, or no sizes
            were found that the model accepts.
    """
    _check_names(model, wish)
    bounds = {**_bounds(model.proto), **wish.ranges}
    found: list[Feeds] = []
    shapes_seen: set[tuple[tuple[int, ...], ...]] = set()
    refusal: OffloadError | None = None
    for sizes in _sizes(model, wish):
        rng = np.random.default_rng(wish.seed)
        feeds = {
            name: wish.arrays.get(name, _draw(value, sizes[name], bounds.get(name), rng, model))
            for name, value in model.wiring.inputs.items()
        }
        key = tuple(array.shape for array in feeds.values())
        if key in shapes_seen:
            continue
        shapes_seen.add(key)
        try:
            accepts(feeds)
        except OffloadError as error:
            refusal = refusal or error
            continue
        found.append({**feeds, **_overrides(model, wish)})
        if len(found) == count:
            break
    if not found:
        raise InputError(f"no random input fits the model ({refusal}): give one with --input")
    return found


def _check_names(model: Model, wish: Wish) -> None:
    known = {**model.wiring.inputs, **model.wiring.defaults}
    for name in (*wish.arrays, *wish.ranges, *wish.shapes):
        if name not in known:
            raise InputError(f"the model has no input {name!r}; it has: {', '.join(known)}")


def _overrides(model: Model, wish: Wish) -> Feeds:
    return {name: array for name, array in wish.arrays.items() if name in model.wiring.defaults}


def _sizes(model: Model, wish: Wish) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """Guesses at the shapes of all inputs; equal names of dimensions get equal sizes."""
    for size in dict.fromkeys((*_SIZES, *_numbers(model.proto))):
        for batch in _BATCHES:
            symbols: dict[str, int] = {}
            yield {
                name: wish.shapes.get(name) or _shape(name, value, batch, size, symbols)
                for name, value in model.wiring.inputs.items()
            }


def _numbers(proto: ModelProto) -> list[int]:
    """Sizes that the model itself names: some exporters bake those of their example in."""
    stored = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT64]
    for node in proto.graph.node:
        stored.extend(a.t for a in node.attribute if a.t.data_type == TensorProto.INT64)
    small = (tensor for tensor in stored if math.prod(tensor.dims) <= 8 and tensor.raw_data)
    found = {int(n) for tensor in small for n in np.frombuffer(tensor.raw_data, np.int64)}
    return sorted(n for n in found if 1 < n <= 1024)[:32]


def _shape(
    name: str, value: ValueInfoProto, batch: int, size: int, symbols: dict[str, int]
) -> tuple[int, ...]:
    if not value.type.HasField("tensor_type"):
        raise InputError(f"input {name!r} is a sequence, map or optional: it can't be drawn")
    sizes = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        guess = size if axis else batch
        known = known_size(dim)
        label = dim.dim_param or f"{name} {axis}"
        sizes.append(symbols.setdefault(label, guess) if known is None else known)
    return tuple(sizes)


def _draw(
    value: ValueInfoProto,
    shape: tuple[int, ...],
    bounds: Range | None,
    rng: np.random.Generator,
    model: Model,
) -> Array:
    """One input: normal floats, whole bytes, indices within their table, words of the model."""
    dtype = dtype_name(value.type.tensor_type.elem_type) or "undefined"
    if dtype == "string":
        words = np.array(_words(model.proto) or ["a", "b"], object)
        return rng.choice(words, shape)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in ("float", "double", "float16", "bfloat16"):
        drawn = rng.standard_normal(shape)
        if bounds:
            drawn = rng.uniform(bounds.low, bounds.high, shape)
        if dtype == "bfloat16":
            return (drawn.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return drawn.astype(_NUMPY.get(dtype, dtype))
    if dtype not in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        raise InputError(f"input {value.name!r} is of type {dtype}: give it with --input")
    whole = bounds or (Range(0, 255) if dtype == "uint8" else Range(0, 1))
    return rng.integers(math.ceil(whole.low), math.floor(whole.high) + 1, shape).astype(dtype)


def _words(proto: ModelProto) -> list[str]:
    """Text that the model itself knows: categories, keys, vocabularies."""
    return sorted(
        {
            word.decode(errors="replace")
            for node in proto.graph.node
            if node.domain == "ai.onnx.ml"
            for attribute in node.attribute
            for word in attribute.strings
        }
    )


def _bounds(proto: ModelProto) -> dict[str, Range]:
    """Bounds of the inputs that pick rows of a stored table, through operators that hand on."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    origin = {value.name: value.name for value in proto.graph.input if value.name not in sizes}
    bounds: dict[str, Range] = {}
    for node in proto.graph.node:
        if node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type in _PICKING and node.input[1] in origin and node.input[0] in sizes:
            source = origin[node.input[1]]
            rows = sizes[node.input[0]][_axis(node)]
            known = bounds.get(source)
            bounds[source] = Range(0, min(rows - 1, known.high) if known else rows - 1)
    return bounds


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
