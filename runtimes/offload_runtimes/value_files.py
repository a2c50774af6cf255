"""Read and write named values: arrays in .npz, sequences and maps as JSON, pictures in a folder."""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import ModelValue
from offload.bundle.sample_inputs import open_inputs, open_sizes_sentence
from offload.errors import InputError
from offload.files import staged_file

from offload_runtimes.engine import DTYPES, Array

_NOT_NPZ = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, SyntaxError)


def read_values(path: Path) -> dict[str, Any]:
    """Values by name, from an .npz of arrays or a .json with an object.

    Raises:
        InputError: no such file, or another format.
    """
    if path.suffix != ".json":
        return read_arrays(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"input {path} does not exist: check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({error}): write an object in it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object with a value for each input, by its name")
    return values


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz by name; nothing is unpickled.

    Raises:
        InputError: no such file, or not an .npz of plain arrays.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give an .npz file")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(
                    f"{path} holds one array without a name: write it with"
                    " np.savez(path, NAME=array), where NAME is the input's name"
                )
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"input {path} does not exist: check the path") from None
    except InputError:
        raise
    except _NOT_NPZ as error:
        raise InputError(
            f"{path} is not an .npz file of plain arrays: write it with np.savez(path, NAME=array),"
            " text as array.astype(str)"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"{path} holds {name!r}, which is not an array: write it with np.savez"
            )
    return arrays


def typed(values: Mapping[str, Any], inputs: Iterable[ModelValue]) -> dict[str, Any]:
    """Values with those from JSON converted to the declared types of the inputs.

    Raises:
        InputError: a JSON value does not fit its input.
    """
    declared = {value.name: value.type for value in inputs}
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _typed(value, declared.get(name, ""))
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            raise InputError(
                f"the JSON value of input {name!r} does not fit its type {declared.get(name)}"
                f" ({error})"
            ) from error
    return converted


def _typed(value: Any, kind: str) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if kind.startswith("seq("):
        return [_typed(element, kind[4:-1]) for element in value]
    if kind.startswith("map("):
        is_number = not kind.startswith("map(string")
        return {int(key) if is_number else key: entry for key, entry in value.items()}
    return np.array(value, object if kind == "tensor(string)" else DTYPES.get(kind))


def write_values(path: Path, values: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write values by name, atomically: the arrays to an .npz.

    Values that an .npz cannot hold without pickling (sequences, maps, text that ends with a NUL
    character) are written to a JSON object next to it: `out.json` for `out.npz`.

    Returns:
        The files written.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses.
    """
    arrays = {name: _plain(value) for name, value in values.items()}
    others = {name: _json(values[name]) for name, array in arrays.items() if array is None}
    with staged_file(path) as staged:
        with zipfile.ZipFile(staged, "w") as archive:
            for name, array in arrays.items():
                if array is not None:
                    # As np.savez does, which takes some names for its own parameters.
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        if not others:
            return (path,)
        json_path = path.with_suffix(".json") if path.suffix == ".npz" else Path(f"{path}.json")
        with staged_file(json_path) as staged_json:
            staged_json.write_text(json.dumps(others, ensure_ascii=False), encoding="utf-8")
    return path, json_path


def _plain(value: Any) -> "np.ndarray[Any, np.dtype[Any]] | None":
    """The array as an .npz can hold it without pickling; None where it cannot."""
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype != object:
        return value
    if any(word.endswith("\0") for word in value.flat):  # numpy pads with these
        return None
    return value.astype(str)


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, list):
        return [_json(element) for element in value]
    return value


PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, slots=True)
class Frame:
    """The inputs of one run.

    Attributes:
        name: the picture's path within its folder, with `/`; empty for an .npz.
        feeds: a value for each input.
    """

    name: str
    feeds: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file: its path within the folder, and the number of its sub-folder."""

    name: str
    path: Path
    label: int | None


def read_frames(path: Path, values: Sequence[ModelValue]) -> Iterator[Frame]:
    """The runs of a file or folder of inputs: one for an .npz, one for each picture.

    Args:
        path: an .npz or .json file, or a folder of pictures for a model with one picture as input.
        values: the model's inputs, all sizes but the first bound where pictures are read.

    Raises:
        InputError: the path does not exist or has another form, or no input accepts pictures.
    """
    if not path.is_dir():
        yield Frame("", read_values(path))
        return
    value = picture_input(path, values)
    for picture in find_pictures(path):
        yield Frame(picture.name, {value.name: read_picture(picture.path, value)})


def find_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder in order of their names, with labels if they are in sub-folders.

    Sub-folders in order of their names are the classes 0, 1, ... where they hold pictures.
    Hidden files and folders are left out.

    Raises:
        InputError: the folder holds no pictures, or both pictures and folders of pictures.
    """
    pictures_here, folders = _listed(folder)
    classes = [(path, _listed(path)[0]) for path in folders]
    if any(pictures for _, pictures in classes):
        if pictures_here:
            raise InputError(
                f"{folder} holds both pictures, such as {pictures_here[0].name}, and folders of"
                " pictures: move every picture to the folder of its class, or none"
            )
        return [
            Picture(f"{place.name}/{path.name}", path, label)
            for label, (place, pictures) in enumerate(classes)
            for path in pictures
        ]
    if not pictures_here:
        raise InputError(f"{folder} holds no pictures ({', '.join(PICTURES)}): give some")
    return [Picture(path.name, path, None) for path in pictures_here]


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and folders directly in a folder."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    pictures = [p for p in paths if p.suffix.lower() in PICTURES and p.is_file()]
    return pictures, [path for path in paths if path.is_dir()]


def picture_input(folder: Path, values: Sequence[ModelValue]) -> ModelValue:
    """The input that accepts the pictures of a folder.

    Raises:
        InputError: the model has several inputs, or its input isn't a picture of known sizes.
    """
    if len(values) != 1:
        names = ", ".join(repr(value.name) for value in values) or "none"
        raise InputError(
            f"a folder of pictures fits a model with one input, this one has {names}: give an .npz"
            f" file, not {folder}"
        )
    _layout(values[0])
    return values[0]


def read_picture(path: Path, value: ModelValue) -> Array:
    """One picture as an input: resized, RGB, in the input's layout.

    A uint8 input of N x H x W x 3 gets the bytes, a float one of N x 3 x H x W numbers from 0
    to 1; N is 1.

    Raises:
        InputError: the file is not a picture, Pillow isn't installed, or the input does not accept
            pictures.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("reading pictures needs Pillow: pip install 'pillow>=10.1'") from None
    height, width, channels_last = _layout(value)
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((width, height)))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is not a picture that can be read: remove it") from error
    if channels_last:
        return pixels[None]
    scaled: Array = pixels.transpose(2, 0, 1)[None] / np.float32(255)
    return scaled.astype(np.float32)


def _layout(value: ModelValue) -> tuple[int, int, bool]:
    """Height, width, and whether the channels come last."""
    shape: tuple[Any, ...] = value.shape or ()
    if len(shape) == 4:
        last = value.type == "tensor(uint8)" and not _differs(shape[3], 3)
        first = value.type == "tensor(float)" and not _differs(shape[1], 3)
        if (last or first) and not _differs(shape[0], 1):
            single = ModelValue(value.name, value.type, (1, *shape[1:]))
            if open_inputs([single]):
                raise InputError(open_sizes_sentence([value]))
            height, width = shape[1:3] if last else shape[2:]
            return height, width, last
    shown = "x".join("?" if size is None else str(size) for size in shape)
    raise InputError(
        f"input {value.name!r} is {value.type}[{shown}]: a folder of pictures fits"
        " uint8[1xHxWx3] and float[1x3xHxW]; give an .npz file"
    )


def _differs(size: Any, expected: int) -> bool:
    """Whether a dimension cannot have the expected size; an open one can."""
    return isinstance(size, int) and size != expected
