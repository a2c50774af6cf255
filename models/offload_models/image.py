"""Preprocessing as part of a model, so that what a camera gives can be what is sent."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from offload.errors import InputError
from onnx import TensorProto, helper, numpy_helper

Rgb = tuple[float, float, float]
Size = int | str | None  # a number, a name, or an open size without a name


def with_image_input(
    model: onnx.ModelProto,
    input_name: str,
    height: Size,
    width: Size,
    mean: Rgb,
    std: Rgb,
    batch: Size = 1,
    name: str = "image",
) -> onnx.ModelProto:
    """The model with a camera's bytes in place of one normalised input.

    The new first input, `image` unless named, is uint8 batch x height x width x 3, where sizes
    that are names or None stay open. The graph
    turns it into what `input_name` was, float32 batch x 3 x H x W: (image / 255 - mean) / std
    per channel. A fourth of the bytes, and still exact. All else is copied: IR and opset
    versions, metadata, functions.

    Raises:
        InputError: the model has no such float32 input, or has a tensor of the new name already.
    """
    old = next((value for value in model.graph.input if value.name == input_name), None)
    if old is None or old.type.tensor_type.elem_type != TensorProto.FLOAT:
        known = ", ".join(value.name for value in model.graph.input)
        raise InputError(f"the model has no float32 input {input_name!r}: its inputs are {known}")
    if any(name in (*node.input, *node.output) for node in model.graph.node):
        raise InputError(f"the model has a tensor named {name!r} already: rename it first")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.input[:]
    others = [value for value in model.graph.input if value.name != input_name]
    shape = (batch, height, width, 3)
    image = helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
    made.graph.input.extend([image, *others])
    made.graph.initializer.extend(normalisation(mean, std))
    made.graph.node.extend([*preprocessing(input_name, name), *model.graph.node])
    return made


def normalisation(mean: Rgb, std: Rgb) -> list[onnx.TensorProto]:
    """The two constants of (x - offset) * factor, for x from 0 to 255."""
    offset = np.array(mean, np.float32).reshape(1, 3, 1, 1) * np.float32(255)
    factor = np.float32(1) / (np.array(std, np.float32).reshape(1, 3, 1, 1) * np.float32(255))
    return [
        numpy_helper.from_array(offset, "image/offset"),
        numpy_helper.from_array(factor, "image/factor"),
    ]


def preprocessing(output: str, image: str = "image") -> list[onnx.NodeProto]:
    """Nodes from the image to `output`."""
    return [
        helper.make_node("Cast", [image], ["image/float"], "image/cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["image/float"], ["image/nchw"], "image/transpose", perm=[0, 3, 1, 2]
        ),
        helper.make_node("Sub", ["image/nchw", "image/offset"], ["image/centred"], "image/sub"),
        helper.make_node("Mul", ["image/centred", "image/factor"], [output], "image/mul"),
    ]


def rename_input(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """A copy of the model with one input called otherwise, so that `image` is free for a camera's.

    Raises:
        InputError: no such input, or the new name is taken.
    """
    if old not in {value.name for value in model.graph.input}:
        raise InputError(f"the model has no input {old!r}: rename one of its inputs")
    if any(new in (*node.input, *node.output) for node in model.graph.node):
        raise InputError(f"the model has a tensor named {new!r} already: choose another name")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in made.graph.input:
        value.name = new if value.name == old else value.name
    for node in made.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new if name == old else name
    return made


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Sizes of every input by name; 0 where one is dynamic."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }


def save_with_image_input(
    source: Path,
    target: Path,
    mean: Rgb,
    std: Rgb,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, tuple[int, ...]]:
    """Write a copy of a model that takes a camera's bytes in place of its one picture.

    Sizes that the model leaves open stay open in the copy.

    Args:
        source: the model's file.
        target: the file to write.
        mean: of each colour, for numbers from 0 to 1.
        std: deviation of each colour.
        shapes: sizes of inputs, by their names in the source.

    Returns:
        The shapes, that of the picture as the copy's input has it: N x H x W x 3.

    Raises:
        InputError: the file is no model, or it has not just one float32 input of N x 3 x H x W.
    """
    try:
        model = onnx.load(source)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist: check the path") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{source} is not an ONNX model") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    pictures = [value for value in inputs if _is_picture(value, shapes.get(value.name))]
    if len(pictures) != 1:
        listed = ", ".join(f"{value.name!r} {_described(value)}" for value in inputs) or "none"
        raise InputError(
            f"--image needs one float32 input of N x 3 x H x W (where an export leaves the 3 open,"
            f" --shape gives it), {source.name} has {listed}: put the preprocessing into the model"
            " yourself"
        )
    old = pictures[0].name
    batch, _, height, width = _sizes(pictures[0])
    name = "image" if old != "image" else "image_bytes"
    made = with_image_input(model, old, height, width, mean, std, batch, name)
    onnx.save(made, target)
    found = {key: tuple(sizes) for key, sizes in shapes.items() if key != old}
    if old in shapes:
        count, channels, rows, columns = shapes[old]
        sizes = (count, rows, columns, channels)
        if found.setdefault(name, sizes) != sizes:
            raise InputError(
                f"--shape gives {old!r} and {name!r} different sizes: give one of them"
            )
    return found


def _sizes(value: onnx.ValueInfoProto) -> list[Size]:
    """Sizes of a tensor: a number, a name, or None for an open one without a name."""
    dims = value.type.tensor_type.shape.dim
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in dims
    ]


def _is_picture(value: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> bool:
    """Whether an input is float32 N x 3 x H x W, the 3 as the model or the given shape has it."""
    sizes = _sizes(value)
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(sizes) != 4:
        return False
    if shape is not None and len(shape) != 4:
        return False
    channels = shape[1] if shape is not None and not isinstance(sizes[1], int) else sizes[1]
    return channels == 3


def _described(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return f"{kind}[{'x'.join('?' if size is None else str(size) for size in _sizes(value))}]"
