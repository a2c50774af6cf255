"""The topologies that come inside the onnx package, brought to life.

The package ships nine published networks as a few kilobytes each: all weights are 0.02, made by
ConstantOfShape nodes, so that most give one answer to any input. Here they get seeded live
weights, and the form that runtimes like best: weights are initializers and no longer inputs.
Nodes keep their order, names and operators otherwise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class TopologyBuilder:
    """Builds one of the nine from its file `light_<topology>.onnx` in the onnx package."""

    topology: str

    def __call__(self, seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
        """The topology with the live weights of this seed; its batch is always 1.

        Raises:
            InputError: another batch is asked for, or this onnx has no such file.
        """
        if batch != 1:
            raise InputError(f"light_{self.topology} has a batch of 1: it can't be {batch}")
        folder = Path(onnx.__file__).parent / "backend/test/data/light"
        path = folder / f"light_{self.topology}.onnx"
        if not path.is_file():
            raise InputError(f"onnx {onnx.__version__} has no {path.name}: install onnx 1.21-1.23")
        return draw_weights(onnx.load(path), np.random.default_rng(seed))


def draw_weights(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Replace every constant float weight by a live one; see the module for the rest.

    The model needs one image input, Nx3x224x224, and the operators of these nine topologies.
    """
    life = WeightDrawing(rng, blank_shapes(model.graph), integers(model.graph))
    given = {name.name for name in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in given)
    life.samples[image.name] = weight_init.sample_images(rng, (3, 224, 224))
    layers = [node for node in model.graph.node if node.output[0] not in life.blanks]
    for node in layers:
        life.run(node)
    life.scale_scores(layers)
    return with_weights(model, layers, image, {**life.integers, **life.weights})


def blank_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Shapes of the weights without values: all constants of float, also reshaped ones."""
    shapes = {i.name: tuple(i.dims) for i in graph.initializer if i.data_type == 1}
    numbers = integers(graph)
    for node in graph.node:
        source, made = node.input[0], node.output[0]
        if node.op_type == "ConstantOfShape":
            shapes[made] = tuple(int(size) for size in numbers[source])
        elif node.op_type == "Unsqueeze" and source in shapes:
            shapes[made] = (*shapes[source], *[1] * len(attributes(node)["axes"]))
        elif node.op_type == "Reshape" and source in shapes:
            shapes[made] = tuple(int(size) for size in numbers[node.input[1]])
    return shapes


def integers(graph: onnx.GraphProto) -> dict[str, Array]:
    """The constants that are shapes, not weights."""
    held = (i for i in graph.initializer if i.data_type != 1)
    return {i.name: numpy_helper.to_array(i) for i in held}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@dataclass
class WeightDrawing:
    """Runs a graph's layers on sample images in order, drawing the weights each one needs."""

    rng: np.random.Generator
    blanks: Mapping[str, Shape]
    integers: Mapping[str, Array]
    samples: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)

    def run(self, node: onnx.NodeProto) -> None:
        """Draw the node's weights by what it is fed, then compute what it makes."""
        names = [name for name in node.input if name in self.blanks]
        fed = [self.samples[name] for name in node.input if name in self.samples]
        if names:
            shapes = [self.blanks[name] for name in names]
            drawn = DRAW[node.op_type](self.rng, attributes(node), fed[0], shapes)
            self.weights.update(zip(names, drawn, strict=True))
            fed += [self.weights[name] for name in names]
        fed += [self.integers[name] for name in node.input if name in self.integers]
        self.samples[node.output[0]] = RUN[node.op_type](attributes(node), *fed)

    def scale_scores(self, layers: list[onnx.NodeProto]) -> None:
        """Give the scores before the softmax their spread, by the last layer with weights.

        What may come after it (ReLU, mean over the image, reshaping) scales along.
        """
        last = max(i for i, node in enumerate(layers) if node.op_type in ("Conv", "Gemm"))
        softmax = [node.input[0] for node in layers if node.op_type == "Softmax"]
        scores = self.samples[softmax[0] if softmax else layers[-1].output[0]]
        factor = np.float32(
            weight_init.LOGIT_STD / scores.reshape(len(scores), -1).std(axis=1).mean()
        )
        for name in layers[last].input[1:]:
            self.weights[name] *= factor


def with_weights(
    model: onnx.ModelProto,
    layers: list[onnx.NodeProto],
    image: onnx.ValueInfoProto,
    constants: Mapping[str, Array],
) -> onnx.ModelProto:
    """The model of these layers alone, with those constants that they use as initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = IR_VERSION
    used = dict.fromkeys(name for node in layers for name in node.input if name in constants)
    for part in ("node", "initializer", "input", "value_info"):
        made.graph.ClearField(part)
    made.graph.node.extend(layers)
    made.graph.input.append(image)
    made.graph.initializer.extend(numpy_helper.from_array(constants[n], n) for n in used)
    return made


def draw_conv(
    rng: np.random.Generator, attrs: Attributes, x: Array, shapes: list[Shape]
) -> Iterator[Array]:
    """Kernels, and the bias where there is one; else a normalisation follows and places them."""
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
    made = kernels.conv(x, weight, stride, pad, groups)
    return made if bias is None else made + per_channel(bias, made)


def run_norm(attrs: Attributes, x: Array, *weights: Array) -> Array:
    """Batch normalisation with running statistics."""
    gamma, beta, mean, variance = (per_channel(weight, x) for weight in weights)
    spread = np.sqrt(variance + np.float32(attrs.get("epsilon", 1e-5)))
    scale: Array = np.asarray(gamma / spread, np.float32)
    return (x - mean) * scale + beta


def run_pool(kernel: Callable[..., Array]) -> Callable[[Attributes, Array], Array]:
    """A pooling with the node's window, stride and padding."""

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
