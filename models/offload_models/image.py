"""Put image preprocessing into a model, so that its input is the camera's bytes."""

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
    """Replace one normalised input of a model by a camera's bytes.

    The new first input, `image` unless named, is uint8 batch x height x width x 3; sizes that are
    names or None stay open. The graph computes what `input_name` was, float32 batch x 3 x H x W:
    (image / 255 - mean) / std per channel. This sends a fourth of the bytes and loses nothing.
    Everything else is copied: IR and opset versions, metadata, functions.

    Raises:
        InputError: the model has no such float32 input, or has a tensor of the new name already.
    """
    old = next((value for value in model.graph.input if value.name == input_name), None)
    if old is None or old.type.tensor_type.elem_type != TensorProto.FLOAT:
        known = ", ".join(value.name for value in model.graph.input)
        raise InputError(f"the model has no float32 input {input_name!r}: its inputs are {known}")
    if any(name in (*node.input, *node.output) for node in model.graph.node):
        raise InputError(f"the model has a tensor named {name!r} already: rename it first")
    offset = np.array(mean, np.float32).reshape(1, 3, 1, 1) * np.float32(255)
    factor = np.float32(1) / (np.array(std, np.float32).reshape(1, 3, 1, 1) * np.float32(255))
    constants = [
        numpy_helper.from_array(offset, "image/offset"),
        numpy_helper.from_array(factor, "image/factor"),
    ]
    nodes = [
        helper.make_node("Cast", [name], ["image/float"], "image/cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["image/float"], ["image/nchw"], "image/transpose", perm=[0, 3, 1, 2]
        ),
        helper.make_node("Sub", ["image/nchw", "image/offset"], ["image/centred"], "image/sub"),
        helper.make_node("Mul", ["image/centred", "image/factor"], [input_name], "image/mul"),
    ]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.input[:]
    others = [value for value in model.graph.input if value.name != input_name]
    shape = (batch, height, width, 3)
    image = helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
    result.graph.input.extend([image, *others])
    result.graph.initializer.extend(constants)
    result.graph.node.extend([*nodes, *model.graph.node])
    return result


def rename_input(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """A copy of the model with one input renamed, so that `image` is free for a camera's bytes.

    Raises:
        InputError: no such input, or the new name is taken.
    """
    if old not in {value.name for value in model.graph.input}:
        raise InputError(f"the model has no input {old!r}: rename one of its inputs")
    if any(new in (*node.input, *node.output) for node in model.graph.node):
        raise InputError(f"the model has a tensor named {new!r} already: choose another name")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        value.name = new if value.name == old else value.name
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = new if name == old else name
    return result


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Sizes of every input by name; 0 for a dynamic size."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }


def picture_input_name(source: Path, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of a model's one input that is float32 N x 3 x H x W; None without exactly one."""
    try:
        graph = onnx.load(source, load_external_data=False).graph
    except (OSError, DecodeError):
        return None
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    pictures = [value.name for value in inputs if _is_picture(value, shapes.get(value.name))]
    return pictures[0] if len(pictures) == 1 else None


def save_with_image_input(
    source: Path,
    target: Path,
    mean: Rgb,
    std: Rgb,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, tuple[int, ...]]:
    """Write a copy of a model whose picture input takes a camera's bytes.

    Open sizes of the model stay open in the copy.

    Args:
        source: the model's file.
        target: the file to write.
        mean: mean of each colour, for values from 0 to 1.
        std: standard deviation of each colour.
        shapes: sizes of inputs, by their names in the source.

    Returns:
        The shapes for the copy: the picture's as N x H x W x 3, the others unchanged.

    Raises:
        InputError: the file is not a model, or does not have exactly one float32 input of
            N x 3 x H x W.
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
        described = []
        for value in inputs:
            kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            sizes = "x".join("?" if size is None else str(size) for size in _sizes(value))
            described.append(f"{value.name!r} {kind}[{sizes}]")
        listed = ", ".join(described) or "none"
        raise InputError(
            f"--image needs one float32 input of N x 3 x H x W (where an export leaves the 3 open,"
            f" --shape gives it), {source.name} has {listed}: put the preprocessing into the model"
            " yourself"
        )
    old = pictures[0].name
    batch, _, height, width = _sizes(pictures[0])
    name = "image" if old != "image" else "image_bytes"
    onnx.save(with_image_input(model, old, height, width, mean, std, batch, name), target)
    result = {key: tuple(sizes) for key, sizes in shapes.items() if key != old}
    if old in shapes:
        count, channels, rows, columns = shapes[old]
        picture = (count, rows, columns, channels)
        if result.setdefault(name, picture) != picture:
            raise InputError(
                f"--shape gives {old!r} and {name!r} different sizes: give one of them"
            )
    return result


def _sizes(value: onnx.ValueInfoProto) -> list[Size]:
    """Sizes of a tensor: a number, a name, or None for an open size without a name."""
    dims = value.type.tensor_type.shape.dim
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in dims
    ]


def _is_picture(value: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> bool:
    """Whether an input is float32 N x 3 x H x W; the 3 may come from the given shape."""
    sizes = _sizes(value)
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(sizes) != 4:
        return False
    if shape is not None and len(shape) != 4:
        return False
    channels = shape[1] if shape is not None and not isinstance(sizes[1], int) else sizes[1]
    return channels == 3
