"""The topologies shipped with the onnx package, with seeded live weights.

The package contains nine published networks as files of a few kilobytes: all their weights are
0.02, produced by ConstantOfShape nodes, so that most of them return one answer for any input. This
module draws live weights and stores them as initializers that are not graph inputs, the form that
runtimes optimise best. Nodes keep their order, names and operators otherwise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from offload.errors import InputError
from onnx import numpy_helper

from offload_models import kernels, weight_init
from offload_models.kernels import Array, per_channel

IR_VERSION = 8
Shape = tuple[int, ...]
Attributes = Mapping[str, Any]


def build_topology(topology: str, seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """Build `light_<topology>.onnx` of the onnx package with live weights; the batch is always 1.

    Raises:
        InputError: another batch is requested, or this onnx version has no such file.
    """
    if batch != 1:
        raise InputError(f"light_{topology} has a batch of 1: it can't be {batch}")
    path = Path(onnx.__file__).parent / f"backend/test/data/light/light_{topology}.onnx"
    if not path.is_file():
        raise InputError(f"onnx {onnx.__version__} has no {path.name}: install onnx 1.21-1.23")
    return draw_weights(onnx.load(path), np.random.default_rng(seed))


def draw_weights(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Replace every constant float weight by a live one, layer by layer on sample images.

    The model needs one image input, Nx3x224x224, and may use only the operators of these nine
    topologies. The scores before the softmax are scaled by the last layer with weights; what
    follows that layer (ReLU, mean over the image, reshape) scales with them.
    """
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in initializers)
    shapes, integers = weight_shapes(graph), integer_constants(graph)
    samples = {image.name: weight_init.sample_images(rng, (3, 224, 224))}
    weights: dict[str, Array] = {}
    layers = [node for node in graph.node if node.output[0] not in shapes]
    for node in layers:
        names = [name for name in node.input if name in shapes]
        inputs = [samples[name] for name in node.input if name in samples]
        if names:
            draw = DRAW[node.op_type]
            drawn = draw(rng, attributes(node), inputs[0], [shapes[name] for name in names])
            weights.update(zip(names, drawn, strict=True))
            inputs += [weights[name] for name in names]
        inputs += [integers[name] for name in node.input if name in integers]
        samples[node.output[0]] = RUN[node.op_type](attributes(node), *inputs)

    last = [node for node in layers if node.op_type in ("Conv", "Gemm")][-1]
    softmax = [node.input[0] for node in layers if node.op_type == "Softmax"]
    scores = samples[softmax[0] if softmax else layers[-1].output[0]]
    std = scores.reshape(len(scores), -1).std(axis=1).mean()
    for name in last.input[1:]:
        weights[name] *= np.float32(weight_init.LOGIT_STD / std)

    constants = {**integers, **weights}
    used = dict.fromkeys(name for node in layers for name in node.input if name in constants)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.ir_version = IR_VERSION
    for part in ("node", "initializer", "input", "value_info"):
        result.graph.ClearField(part)
    result.graph.node.extend(layers)
    result.graph.input.append(image)
    result.graph.initializer.extend(numpy_helper.from_array(constants[n], n) for n in used)
    return result


def weight_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes of the weights to draw: all constants of float, also reshaped ones."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer if i.data_type == 1}
    integers = integer_constants(graph)
    for node in graph.node:
        source, output = node.input[0], node.output[0]
        if node.op_type == "ConstantOfShape":
            shapes[output] = tuple(int(size) for size in integers[source])
        elif node.op_type == "Unsqueeze" and source in shapes:
            shapes[output] = (*shapes[source], *[1] * len(attributes(node)["axes"]))
        elif node.op_type == "Reshape" and source in shapes:
            shapes[output] = tuple(int(size) for size in integers[node.input[1]])
    return shapes


def integer_constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """The constants that are shapes, not weights."""
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type != 1}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def draw_conv(
    rng: np.random.Generator, attrs: Attributes, x: Array, shapes: list[Shape]
) -> Iterator[Array]:
    """Kernels, and the bias if there is one; otherwise a normalisation follows."""
    weight = weight_init.he_weight(rng, shapes[0])
    if len(shapes) == 1:
        yield weight
        return
    scale, bias = weight_init.conv_affine(rng, run_conv(attrs, x, weight))
    yield weight * per_channel(scale, weight, axis=0)
    yield bias


def draw_gemm(
    rng: np.random.Generator, _: Attributes, x: Array, shapes: list[Shape]
) -> Iterator[Array]:
    """Weight, outputs first, and bias."""
    weight = weight_init.he_weight(rng, shapes[0])
    scale, bias = weight_init.dense_affine(rng, x @ weight.T, std=1.0)
    weight *= scale
    yield from (weight, bias)


def draw_norm(
    rng: np.random.Generator, _: Attributes, x: Array, _shapes: list[Shape]
) -> Iterator[Array]:
    """Scale, shift, mean, variance."""
    mean, std = weight_init.channel_statistics(x)
    yield from (*weight_init.norm_affine(rng, x.shape[1]), mean, std**2)


DRAW: Mapping[str, Callable[..., Iterable[Array]]] = {
    "Conv": draw_conv,
    "Gemm": draw_gemm,
    "BatchNormalization": draw_norm,
    "Mul": lambda rng, _, x, shapes: [
        weight_init.norm_affine(rng, x.shape[1])[0].reshape(shapes[0])
    ],
    "Add": lambda rng, _, x, shapes: [
        weight_init.norm_affine(rng, x.shape[1])[1].reshape(shapes[0])
    ],
}


def run_conv(attrs: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Convolution with equal padding on all sides."""
    pad, stride, groups = attrs.get("pads", [0])[0], attrs["strides"][0], attrs.get("group", 1)
    result = kernels.conv(x, weight, stride, pad, groups)
    return result if bias is None else result + per_channel(bias, result)


def run_norm(attrs: Attributes, x: Array, *weights: Array) -> Array:
    """Batch normalisation with running statistics."""
    gamma, beta, mean, variance = (per_channel(weight, x) for weight in weights)
    spread = np.sqrt(variance + np.float32(attrs.get("epsilon", 1e-5)))
    scale: Array = np.asarray(gamma / spread, np.float32)
    return (x - mean) * scale + beta


def run_pool(kernel: Callable[..., Array]) -> Callable[[Attributes, Array], Array]:
    """A pooling function with the node's window, stride and padding."""

    def run(attrs: Attributes, x: Array) -> Array:
        top, bottom = attrs.get("pads", [0, 0, 0, 0])[::2]
        return kernel(x, attrs["kernel_shape"][0], attrs["strides"][0], (top, bottom))

    return run


def run_softmax(_: Attributes, x: Array) -> Array:
    """Over all axes but the first, as before opset 13."""
    flat = np.exp(x - x.max(axis=1, keepdims=True)).reshape(len(x), -1)
    shares: Array = np.asarray(flat / flat.sum(axis=1, keepdims=True), np.float32)
    return shares.reshape(x.shape)


RUN: Mapping[str, Callable[..., Array]] = {
    "Conv": run_conv,
    "Gemm": lambda _, x, weight, bias: x @ weight.T + bias,
    "BatchNormalization": run_norm,
    "MaxPool": run_pool(kernels.max_pool),
    "AveragePool": run_pool(kernels.average_pool),
    "GlobalAveragePool": lambda _, x: x.mean(axis=(2, 3), keepdims=True),
    "LRN": lambda attrs, x: kernels.lrn(
        x, attrs["size"], attrs["alpha"], attrs["beta"], attrs["bias"]
    ),
    "Relu": lambda _, x: np.maximum(x, 0),
    "Dropout": lambda _, x: x,
    "Concat": lambda attrs, *parts: np.concatenate(parts, axis=attrs["axis"]),
    "Sum": lambda _, *parts: np.sum(parts, axis=0),
    "Mul": lambda _, x, y: x * y,
    "Add": lambda _, x, y: x + y,
    "Reshape": lambda _, x, shape: x.reshape(len(x), *shape[1:]),
    "Transpose": lambda attrs, x: x.transpose(attrs["perm"]),
    "Softmax": run_softmax,
}
