"""Build a network layer by layer: every layer becomes one ONNX node with live weights.

Each layer runs on a few sample images when it is added. This gives its output shape and the
activations from which its weights are scaled (see `offload_models.weight_init`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from offload_models import kernels, weight_init
from offload_models.kernels import Array, per_channel

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, slots=True, eq=False)
class LayerOutput:
    """A tensor of the network and its values for the sample images."""

    variable: gs.Variable
    sample: Array

    @property
    def channels(self) -> int:
        """Size of axis 1."""
        return int(self.sample.shape[1])


class Network:
    """Adds layers one by one; a node and its output tensor share one readable name.

    Args:
        name: the graph's name.
        seed: seed of all random choices; the same seed gives the same network on one machine
            (the last bits of the weights depend on its floating-point library).
        batch: size of axis 0, or a name for it to keep it dynamic.
    """

    def __init__(self, name: str, seed: int = 0, batch: int | str = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self._batch = batch
        self._graph = gs.Graph(name=name, opset=OPSET, ir_version=IR_VERSION)

    def input(self, name: str, shape: tuple[int, ...]) -> LayerOutput:
        """A float32 graph input: batch x `shape`."""
        value = self._value(name, weight_init.sample_images(self.rng, shape))
        self._graph.inputs.append(value.variable)
        return value

    def model(self, *outputs: LayerOutput) -> onnx.ModelProto:
        """The finished network, with these tensors as graph outputs."""
        self._graph.outputs = [value.variable for value in outputs]
        model: onnx.ModelProto = gs.export_onnx(self._graph)
        model.producer_name = "onnx-offload zoo"
        return model

    def conv(
        self, name: str, x: LayerOutput, channels: int, kernel: int, stride: int = 1, pad: int = 0,
        groups: int = 1, gain: float = 1.0,
    ) -> LayerOutput:  # fmt: skip
        """Convolution with bias; batch normalisation, where the paper has one, is folded in.

        The output has a standard deviation of about `gain` in each channel.
        """
        weight = weight_init.he_weight(self.rng, (channels, x.channels // groups, kernel, kernel))
        raw = kernels.conv(x.sample, weight, stride, pad, groups)
        scale, bias = (np.float32(gain) * part for part in weight_init.conv_affine(self.rng, raw))
        output = raw * per_channel(scale, raw) + per_channel(bias, raw)
        attrs = {
            "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4,
            "dilations": [1, 1], "group": groups,
        }  # fmt: skip
        constants = {"weight": weight * per_channel(scale, weight, axis=0), "bias": bias}
        return self._add("Conv", name, [x], output, attrs, constants)

    def conv_relu(
        self, name: str, x: LayerOutput, channels: int, kernel: int, stride: int = 1, pad: int = 0,
        groups: int = 1,
    ) -> LayerOutput:  # fmt: skip
        """A convolution and its ReLU, which is named `<name>/relu`."""
        output = self.conv(name, x, channels, kernel, stride, pad, groups)
        return self.relu(f"{name}/relu", output)

    def batch_norm(self, name: str, x: LayerOutput) -> LayerOutput:
        """Batch normalisation as a node, for inputs that are not the output of a convolution."""
        mean, std = weight_init.channel_statistics(x.sample)
        gamma, beta = weight_init.norm_affine(self.rng, x.channels)
        scale = np.asarray(gamma / np.sqrt(std**2 + 1e-5), np.float32)
        scaled = per_channel(scale, x.sample)
        output = (x.sample - per_channel(mean, x.sample)) * scaled + per_channel(beta, x.sample)
        constants = {"gamma": gamma, "beta": beta, "mean": mean, "variance": std**2}
        return self._add("BatchNormalization", name, [x], output, {"epsilon": 1e-5}, constants)

    def dense(self, name: str, x: LayerOutput, units: int, std: float = 1.0) -> LayerOutput:
        """Fully connected layer with bias on batch x features; outputs of deviation `std`."""
        weight = weight_init.he_weight(self.rng, (units, x.sample.shape[1]))
        raw = x.sample @ weight.T
        scale, bias = weight_init.dense_affine(self.rng, raw, std)
        constants = {"weight": weight * scale, "bias": bias}
        return self._add("Gemm", name, [x], raw * scale + bias, {"transB": 1}, constants)

    def logits(self, name: str, x: LayerOutput, classes: int) -> LayerOutput:
        """The last fully connected layer: scores of standard deviation about 2.

        Such scores make a softmax neither flat nor one-hot.
        """
        return self.dense(name, x, classes, weight_init.LOGIT_STD)

    def dense_relu(self, name: str, x: LayerOutput, units: int) -> LayerOutput:
        """A fully connected layer and its ReLU, which is named `<name>/relu`."""
        return self.relu(f"{name}/relu", self.dense(name, x, units))

    def classify(self, x: LayerOutput, classes: int = 1000) -> LayerOutput:
        """Mean over the image, then `logits`: the classifier of most networks since 2014."""
        pooled = self.global_average_pool("pool", x)
        return self.logits("logits", self.flatten("flatten", pooled), classes)

    def relu(self, name: str, x: LayerOutput) -> LayerOutput:
        """max(x, 0)."""
        return self._add("Relu", name, [x], np.maximum(x.sample, 0))

    def relu6(self, name: str, x: LayerOutput) -> LayerOutput:
        """min(max(x, 0), 6)."""
        bounds = {part: np.array(bound, np.float32) for part, bound in (("min", 0), ("max", 6))}
        return self._add("Clip", name, [x], x.sample.clip(0, 6), constants=bounds)

    def add(self, name: str, x: LayerOutput, y: LayerOutput) -> LayerOutput:
        """x + y."""
        return self._add("Add", name, [x, y], x.sample + y.sample)

    def sum(self, name: str, values: Sequence[LayerOutput]) -> LayerOutput:
        """Sum of one or more tensors of one shape."""
        return self._add("Sum", name, values, np.sum([v.sample for v in values], axis=0))

    def mean(self, name: str, values: Sequence[LayerOutput]) -> LayerOutput:
        """Mean of one or more tensors of one shape."""
        return self._add("Mean", name, values, np.mean([v.sample for v in values], axis=0))

    def weigh(self, name: str, x: LayerOutput, weight: float) -> LayerOutput:
        """x times one number."""
        factor = np.array(weight, np.float32)
        return self._add("Mul", name, [x], x.sample * factor, constants={"weight": factor})

    def concat(self, name: str, values: Sequence[LayerOutput]) -> LayerOutput:
        """Channels of all values, one after another."""
        output = np.concatenate([value.sample for value in values], axis=1)
        return self._add("Concat", name, values, output, {"axis": 1})

    def max_pool(
        self, name: str, x: LayerOutput, kernel: int, stride: int, pads: tuple[int, int] = (0, 0)
    ) -> LayerOutput:
        """Maximum over windows; `pads` are rows (and columns) added before and after."""
        output = kernels.max_pool(x.sample, kernel, stride, pads)
        attrs = {
            "kernel_shape": [kernel] * 2, "strides": [stride] * 2,
            "pads": [pads[0], pads[0], pads[1], pads[1]],
        }  # fmt: skip
        return self._add("MaxPool", name, [x], output, attrs)

    def average_pool(self, name: str, x: LayerOutput, kernel: int, stride: int) -> LayerOutput:
        """Mean over windows."""
        output = kernels.average_pool(x.sample, kernel, stride)
        attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        return self._add("AveragePool", name, [x], output, attrs)

    def global_average_pool(self, name: str, x: LayerOutput) -> LayerOutput:
        """Mean over each channel's whole image: batch x C x 1 x 1."""
        output = x.sample.mean(axis=(2, 3), keepdims=True)
        return self._add("GlobalAveragePool", name, [x], output)

    def flatten(self, name: str, x: LayerOutput) -> LayerOutput:
        """Batch x everything else."""
        return self._add("Flatten", name, [x], x.sample.reshape(len(x.sample), -1), {"axis": 1})

    def lrn(self, name: str, x: LayerOutput, alpha: float = 1e-4, bias: float = 1.0) -> LayerOutput:
        """Local response normalisation over 5 channels with the exponent 0.75."""
        output = kernels.lrn(x.sample, 5, alpha, 0.75, bias)
        attrs = {"size": 5, "alpha": alpha, "beta": 0.75, "bias": bias}
        return self._add("LRN", name, [x], output, attrs)

    def _value(self, name: str, sample: Array) -> LayerOutput:
        shape = [self._batch, *sample.shape[1:]]
        return LayerOutput(
            gs.Variable(name, np.float32, shape), sample.astype(np.float32, copy=False)
        )

    def _add(
        self, op: str, name: str, inputs: Sequence[LayerOutput], output: Array,
        attrs: Mapping[str, object] | None = None, constants: Mapping[str, Array] | None = None,
    ) -> LayerOutput:  # fmt: skip
        value = self._value(name, output)
        weights = [
            gs.Constant(f"{name}.{part}", array) for part, array in (constants or {}).items()
        ]
        tensors = [*(x.variable for x in inputs), *weights]
        node = gs.Node(op, name, dict(attrs or {}), inputs=tensors, outputs=[value.variable])
        self._graph.nodes.append(node)
        return value
