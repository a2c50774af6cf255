"""Random sample values for the inputs of a model; a device that repeats a proof has no onnx."""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np

from offload.bundle.bundle import DTYPES, ModelValue
from offload.errors import InputError, OffloadError
from offload.graph.dimensions import Dim, Symbols

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Shapes = Mapping[str, tuple[int, ...]]

# Sizes tried for open dimensions until the model accepts them: multiples that strided networks
# accept, then small ones. An open first dimension counts as the batch.
_SIZES = (64, 96, 32, 48, 128, 224, 320, 512, 256, 16, 24, 8, 5, 4, 3, 2, 1)
_BATCHES = (2, 3, 1)
# Sizes in the example of an error message: for the sides of a picture, and for other dimensions.
_PICTURE_SIZE, _OTHER_SIZE = 640, 64
_PICTURE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(uint8)")
# Bits of a float8 up to this are finite numbers of at most 1 in every float8 type.
_FLOAT8_BITS = 0x38


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Bounds of an input's numbers, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model, with hints from the model about their values.

    Attributes:
        values: the required inputs, in the model's order.
        defaults: names of the optional inputs.
        ranges: bounds that follow from the model, such as the number of rows of a lookup table.
        words: text stored in the model: categories, keys, vocabularies.
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
class SampleOptions:
    """Values, bounds and sizes that sample inputs must have.

    Attributes:
        arrays: values of inputs.
        ranges: bounds for random inputs.
        shapes: sizes of inputs with open dimensions.
        seed: seed of the random numbers.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    ranges: Mapping[str, ValueRange] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    seed: int = 0


def bound(values: Sequence[ModelValue], shapes: Shapes) -> tuple[ModelValue, ...]:
    """Inputs with sizes in place of open dimensions; named sizes are bound in all inputs together.

    Args:
        values: inputs of a model.
        shapes: sizes by input name.

    Raises:
        InputError: a shape is for an unknown input, or contradicts the input or another shape.
    """
    symbols = Symbols.from_shapes({value.name: value.shape for value in values}, shapes)
    return tuple(replace(v, shape=shapes.get(v.name, _sized(v, symbols))) for v in values)


def _sized(value: ModelValue, symbols: Symbols) -> tuple[Dim, ...] | None:
    """A shape with the known sizes of its names."""
    if value.shape is None:
        return None
    return tuple(symbols.substituted(d) if isinstance(d, str) else d for d in value.shape)


def open_inputs(values: Iterable[ModelValue]) -> tuple[ModelValue, ...]:
    """The tensor inputs that have a dimension without a size."""
    return tuple(
        value
        for value in values
        if value.type.startswith("tensor(")
        and (value.shape is None or not all(isinstance(size, int) for size in value.shape))
    )


def shape_options(values: Sequence[ModelValue]) -> str:
    """Options that set every open dimension, ready to paste; empty where none is open.

    An example is `--shape images=1x3x640x640`: 1 for the first dimension, 3 channels and 640 for
    the sides of an input that looks like a picture, 64 for other dimensions. Dimensions of equal
    names get equal sizes, and an input whose sizes follow from the others is left out.
    """
    options = []
    symbols = Symbols.of(value.shape or () for value in values)
    while unset := open_inputs(replace(value, shape=_sized(value, symbols)) for value in values):
        name, sizes = unset[0].name, _example(unset[0], symbols)
        options.append(f"--shape {shlex.quote(name + '=' + 'x'.join(map(str, sizes)))}")
        values = [replace(v, shape=sizes) if v.name == name else v for v in values]
    return " ".join(options)


def _example(value: ModelValue, symbols: Symbols) -> tuple[int, ...]:
    """Plausible sizes for an input with open dimensions; binds its symbols."""
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
    return tuple(_size(d, symbols, g) for g, d in zip(guesses, shape, strict=False))


def open_sizes_sentence(values: Sequence[ModelValue]) -> str:
    """A sentence that names the first input with dynamic axes, and the options that set sizes.

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

    Floats have a normal distribution, uint8 covers its whole range, indices stay within their
    table, text consists of the model's own words.

    Raises:
        InputError: a size is open, or no random value fits an input's type.
    """
    if unknown := open_sizes_sentence(inputs.values):
        raise InputError(unknown)
    shapes = {
        value.name: tuple(size for size in value.shape or () if isinstance(size, int))
        for value in inputs.values
    }
    return _random_inputs(inputs, shapes, inputs.ranges, seed)


def sample(
    inputs: ModelInputs,
    accepts: Callable[[Feeds], Any],
    options: SampleOptions,
    count: int,
    advice: str = "give one with --input",
) -> list[Feeds]:
    """Up to `count` sets of inputs that a model accepts, of different sizes where they may vary.

    Args:
        inputs: the inputs of the model.
        accepts: runs the model; raises an OffloadError where it can't.
        options: values, bounds and sizes specified by the caller.
        count: at least 1; a model of fixed sizes gets one set.
        advice: what to do where the model accepts no inputs, as the end of a sentence.

    Raises:
        InputError: an input has a type without random values, `options` have an unknown input, or
            the model accepted none of the sizes tried.
    """
    known = [*(value.name for value in inputs.values), *inputs.defaults]
    for name in (*options.arrays, *options.ranges, *options.shapes):
        if name not in known:
            raise InputError(f"the model has no input {name!r}; it has: {', '.join(known)}")
    ranges = {**inputs.ranges, **options.ranges}
    arrays = {name: array for name, array in options.arrays.items() if name not in inputs.defaults}
    random = replace(inputs, values=tuple(v for v in inputs.values if v.name not in arrays))
    samples: list[Feeds] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    first_error: OffloadError | None = None
    for shapes in _guesses(inputs, options):
        key = tuple(shapes[value.name] for value in inputs.values)
        if key in seen:
            continue
        seen.add(key)
        feeds = _random_inputs(random, shapes, ranges, options.seed) | arrays
        try:
            accepts(feeds)
        except OffloadError as error:
            first_error = first_error or error
            continue
        samples.append({**feeds, **options.arrays})
        if len(samples) == count:
            break
    if not samples:
        raise InputError(f"no random input fits the model ({first_error}): {advice}")
    return samples


def _guesses(inputs: ModelInputs, options: SampleOptions) -> Iterator[Shapes]:
    """Consistent guesses at the shapes of all inputs.

    Dimensions of equal names get equal sizes, and expressions of them are evaluated. Where no
    equal sizes fit, one name is tried as the sum of two others, such as the length of a cache plus
    the number of new tokens.
    """
    named = {value.name for value in inputs.values}
    shapes = {name: sizes for name, sizes in options.shapes.items() if name in named}
    shapes |= {name: array.shape for name, array in options.arrays.items() if name in named}
    values = [replace(v, shape=shapes.get(v.name, v.shape)) for v in inputs.values]
    symbols = Symbols.of(value.shape or () for value in inputs.values)
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
            _size(dim, symbols, size if axis else batch)
            for axis, dim in enumerate(value.shape or ())
        )
        for value in values
    }


def _size(dim: Dim, symbols: Symbols, guess: int) -> int:
    known = symbols.size(dim) if isinstance(dim, str) else dim
    return guess if known is None else known


def _random_inputs(
    inputs: ModelInputs, shapes: Shapes, ranges: Mapping[str, ValueRange], seed: int
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in inputs.values:
        dtype, shape = DTYPES.get(value.type), shapes[value.name]
        if value.type == "tensor(string)":
            dtype = np.dtype(object)
        if dtype is None:
            raise InputError(
                f"input {value.name!r} is {value.type}, which can't be drawn at random or read from"
                " a file: plan without measuring, `offload split --device 5e9 --server 5e11"
                " --encoding raw`"
            )
        # Reshaped after drawing: numpy returns a scalar instead of an array of shape ().
        flat = _random_row(
            value.type[7:-1], math.prod(shape), inputs.words, ranges.get(value.name), rng
        )
        feeds[value.name] = np.asarray(flat, dtype).reshape(shape)
    return feeds


def _random_row(
    kind: str, count: int, words: Sequence[str], bounds: ValueRange | None, rng: np.random.Generator
) -> Array:
    if kind == "string":
        return rng.choice(np.array(words or ("a", "b"), object), count)
    if kind == "bool":
        return rng.integers(0, 2, count)
    if kind.startswith("float8"):
        return rng.integers(0, _FLOAT8_BITS + 1, count)
    if kind in ("float", "double", "float16", "bfloat16"):
        floats = (
            rng.uniform(bounds.low, bounds.high, count) if bounds else rng.standard_normal(count)
        )
        return (floats.astype(np.float32).view(np.uint32) >> 16) if kind == "bfloat16" else floats
    whole = bounds or (ValueRange(0, 255) if kind == "uint8" else ValueRange(0, 1))
    return rng.integers(math.ceil(whole.low), math.floor(whole.high) + 1, count)
