"""The calibration noun: inputs that stand for those to come, with labels if there are any."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Value
from offload.errors import InputError
from offload.graph.model import Graph

from offload_runtimes.engine import Array, as_feed, dtype_of, shape_fits, show_shape
from offload_runtimes.planning.measure import sample_feeds

LABELS = "labels"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_RANDOM_INPUTS = 2


@dataclass(frozen=True)
class Calibration:
    """Inputs of a model.

    Attributes:
        feeds: one mapping of arrays per input, at least one.
        labels: the right class of each sample, in order; empty: not known.
        is_random: whether nobody gave them: sizes they show are a guess.
    """

    feeds: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] = ()
    is_random: bool = False


def random_calibration(graph: Graph) -> Calibration:
    """Random inputs; pictures are noise over all of their range, which nothing compresses.

    Raises:
        InputError: an input's size is dynamic, or it is no number.
    """
    found = [sample_feeds(graph, seed) for seed in range(_RANDOM_INPUTS)]
    return Calibration(tuple(map(_noisy, found)), is_random=True)


def random_inputs(inputs: Sequence[Value]) -> Calibration:
    """As `random_calibration`, from a bundle's own list of inputs."""
    found = []
    for seed in range(_RANDOM_INPUTS):
        random, feeds = np.random.default_rng(seed), {}
        for value in inputs:
            sizes = [size for size in value.shape or () if isinstance(size, int)]
            if value.shape is None or len(sizes) < len(value.shape):
                raise InputError(
                    f"input {value.name!r} has the dynamic shape {show_shape(value.shape)}: give"
                    " inputs with --calibration"
                )
            dtype = dtype_of(value.type)
            high = 1 if dtype.kind == "f" else 2
            feeds[value.name] = (random.random(sizes) * high).astype(dtype)
        found.append(_noisy(feeds))
    return Calibration(tuple(found), is_random=True)


def _noisy(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Pictures over all of their range, in place of two values that anything compresses."""
    random = np.random.default_rng(0)
    return {
        name: random.integers(0, 256, array.shape, np.uint8)
        if array.dtype == np.uint8 and array.ndim > 2
        else array
        for name, array in feeds.items()
    }


def read_calibration(path: Path, inputs: Sequence[Value]) -> Calibration:
    """Inputs from an .npz file or a folder of pictures.

    An .npz holds an array for each input: one sample of the input's own shape, samples joined
    along the first axis, or stacked on an axis before it; `labels` may hold the right class of
    each. A folder holds pictures, for a model with one input: uint8 N x H x W x 3, or float
    N x 3 x H x W, which gets pixels from 0 to 1; sub-folders in order of their names are the
    classes 0, 1, ...

    Args:
        path: the file or folder.
        inputs: what the model wants.

    Raises:
        InputError: nothing there, not of that form, or of another shape than the model wants.
    """
    if path.is_dir():
        return _from_pictures(path, inputs)
    arrays = _read_npz(path)
    names = {value.name for value in inputs}
    for name in arrays:
        if name not in names and name != LABELS:
            raise InputError(f"{path} holds {name!r}, which is no input: the model has {names}")
    samples = {value.name: _samples(path, value, arrays) for value in inputs}
    counts = {name: len(each) for name, each in samples.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"{path} holds unequal numbers of samples: {counts}")
    count = next(iter(counts.values()))
    if not count:
        raise InputError(f"{path} holds no sample: give at least one")
    feeds = tuple({name: each[index] for name, each in samples.items()} for index in range(count))
    labels = () if LABELS in names else _labels(path, arrays.get(LABELS))
    return Calibration(feeds, labels)


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as found:
            if not isinstance(found, np.ndarray):
                return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise InputError(f"calibration {path} does not exist: check the path") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an .npz file of plain arrays") from error
    raise InputError(f"{path} holds one unnamed array: save it with np.savez(path, NAME=array)")


def _labels(path: Path, found: Array | None) -> tuple[int, ...]:
    if found is None:
        return ()
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise InputError(f"labels in {path} must be whole numbers, one for each sample")
    return tuple(int(label) for label in found)


def _samples(path: Path, value: Value, arrays: Mapping[str, Array]) -> list[Array]:
    if value.name not in arrays:
        raise InputError(f"{path} lacks input {value.name!r}: give an array for each input")
    array = arrays[value.name]
    if array.dtype != dtype_of(value.type):
        as_feed(str(path), value, array)
    if shape_fits(value.shape, array.shape):
        return [array]
    if shape_fits(value.shape, array.shape[1:]):
        return list(array)
    batch = value.shape[0] if value.shape else None
    joined = array.ndim == len(value.shape or ()) and isinstance(batch, int) and batch > 0
    if joined and shape_fits((value.shape or ())[1:], array.shape[1:]):
        assert isinstance(batch, int)
        if len(array) % batch == 0:
            return np.split(array, len(array) // batch) if len(array) else []
    raise InputError(
        f"{path}: input {value.name!r} is {show_shape(value.shape)}, the calibration array"
        f" {show_shape(array.shape)}: give samples of that shape, stacked on a first axis"
    )


def _from_pictures(folder: Path, inputs: Sequence[Value]) -> Calibration:
    if len(inputs) != 1:
        raise InputError(f"the model has {len(inputs)} inputs: give an .npz file, not {folder}")
    found, labels = [], []
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    for label, place in enumerate(classes or [folder]):
        for path in sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURES):
            found.append({inputs[0].name: _picture(path, inputs[0])})
            labels.append(label)
    if not found:
        raise InputError(f"{folder} holds no pictures ({', '.join(PICTURES)}): give some")
    return Calibration(tuple(found), tuple(labels) if classes else ())


def _picture(path: Path, value: Value) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("reading pictures needs Pillow: pip install 'pillow>=10.1'") from None
    height, width, layout = _layout(value)
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((width, height)))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a picture that can be read: remove it") from error
    if layout == "NHWC":
        return pixels[None]
    scaled: Array = (pixels.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
    return scaled


def _layout(value: Value) -> tuple[int, int, str]:
    shape: tuple[Any, ...] = value.shape or ()
    if len(shape) == 4 and (shape[0] == 1 or not isinstance(shape[0], int)):
        if value.type == "tensor(uint8)" and shape[3] == 3 and _fixed(shape[1:3]):
            return shape[1], shape[2], "NHWC"
        if value.type == "tensor(float)" and shape[1] == 3 and _fixed(shape[2:]):
            return shape[2], shape[3], "NCHW"
    raise InputError(
        f"input {value.name!r} is {value.type}{show_shape(value.shape)}: a folder of pictures fits"
        " uint8[1xHxWx3] and float[1x3xHxW]; give an .npz file"
    )


def _fixed(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)
