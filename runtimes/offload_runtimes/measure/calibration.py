"""Calibration inputs: representative inputs of a model, with labels if there are any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload.bundle.bundle import ModelValue
from offload.bundle.sample_inputs import ModelInputs, draw
from offload.errors import InputError

from offload_runtimes.engine import Array, as_feed, shape_fits, show_shape
from offload_runtimes.value_files import find_pictures, picture_input, read_arrays, read_picture

LABELS = "labels"
_RANDOM_INPUTS = 2


@dataclass(frozen=True)
class Calibration:
    """Calibration inputs of a model.

    Attributes:
        feeds: one mapping of arrays per input, at least one.
        labels: the right class of each sample, in order; empty: not known.
        is_random: whether they are random, so that sizes measured on them are a guess.
    """

    feeds: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] = ()
    is_random: bool = False


def random_calibration(inputs: ModelInputs) -> Calibration:
    """Random inputs; pictures are noise over their whole range, which does not compress.

    Raises:
        InputError: an input's size is open, or no random value fits its type.
    """
    return Calibration(tuple(draw(inputs, seed) for seed in range(_RANDOM_INPUTS)), is_random=True)


def read_calibration(path: Path, values: Sequence[ModelValue]) -> Calibration:
    """Inputs from an .npz file or a folder of pictures.

    An .npz holds an array for each input: one sample of the input's own shape, samples joined
    along the first axis, or stacked on an axis before it; an input given once is the same for all
    samples. `labels` may hold the right class of each. A folder holds pictures, for a model with
    one input: uint8 N x H x W x 3, or float N x 3 x H x W, which gets pixels from 0 to 1;
    sub-folders in order of their names are the classes 0, 1, ...

    Args:
        path: the file or folder.
        values: the model's inputs, with the sizes of a sample.

    Raises:
        InputError: the path does not exist or has another form, an array has the wrong shape, or
            has several rows where the first axis is open: they may be one sample or many.
    """
    if path.is_dir():
        value, pictures = picture_input(path, values), find_pictures(path)
        return Calibration(
            tuple({value.name: read_picture(picture.path, value)} for picture in pictures),
            tuple(picture.label for picture in pictures if picture.label is not None),
        )
    arrays = read_arrays(path)
    names = [value.name for value in values]
    for name in arrays:
        if name not in names and name != LABELS:
            listed = ", ".join(map(repr, names)) or "none"
            raise InputError(
                f"{path} holds {name!r}, which is not an input: the model has {listed}"
            )
    samples = {value.name: _samples(path, value, arrays) for value in values}
    counts = {name: len(each) for name, each in samples.items()}
    if not all(counts.values()):
        raise InputError(f"{path} holds no sample: give at least one")
    count = max(counts.values(), default=1)
    if not set(counts.values()) <= {1, count}:
        raise InputError(f"{path} holds unequal numbers of samples: {counts}")
    feeds = tuple(
        {name: each[index if len(each) > 1 else 0] for name, each in samples.items()}
        for index in range(count)
    )
    labels = None if LABELS in names else arrays.get(LABELS)
    if labels is None:
        return Calibration(feeds)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(f"labels in {path} must be whole numbers, one for each sample")
    return Calibration(feeds, tuple(int(label) for label in labels))


def _samples(path: Path, value: ModelValue, arrays: Mapping[str, Array]) -> list[Array]:
    """The samples of one input."""
    if value.name not in arrays:
        raise InputError(f"{path} lacks input {value.name!r}: give an array for each input")
    array = as_feed(str(path), ModelValue(value.name, value.type, None), arrays[value.name])
    shape = value.shape
    if shape is None:
        return [array]
    if shape_fits(shape, array.shape):
        if shape and not isinstance(shape[0], int) and len(array) > 1:
            rows_shape = "x".join(map(str, (1, *array.shape[1:])))
            raise InputError(
                f"{path} holds {len(array)} rows for input {value.name!r}, whose first axis is"
                " open: say how many rows a sample has, like"
                f" --shape {value.name}={rows_shape}"
            )
        return [array]
    if shape_fits(shape, array.shape[1:]) and array.ndim:
        return [array[index, ...] for index in range(len(array))]
    rows = shape[0] if shape else None
    joined = array.ndim == len(shape) and shape_fits(shape[1:], array.shape[1:])
    if joined and isinstance(rows, int) and rows > 0 and len(array) % rows == 0:
        return np.split(array, len(array) // rows) if len(array) else []
    raise InputError(
        f"{path}: input {value.name!r} is {show_shape(shape)}, the calibration array"
        f" {show_shape(array.shape)}: give samples of that shape, stacked on a first axis"
    )
